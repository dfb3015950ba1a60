"""What several commands share, each file its own door: whole-or-nothing files and their journal, processes
and their stopping, remote models, fetching, pages.
"""
