"""Other people's data files. The door is `mixture.open_data(names)`: records without end, by number.

From the inside out: `records` reads a row, `pictures` its images, `rows` a file, `files` finds files, `reader`
joins them, `mixture` mixes and shuffles, `tally` keeps account; `onevision` cleans R1-Onevision's replies.
"""
