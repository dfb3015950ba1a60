"""Other people's data files. The door is `reader.open_data(names)`: records without end, by number.

From the inside out: `layouts` reads a row into a record, with `columns`, `choices`, `pictures`; `rows` reads
files, `files` finds them, `reader` joins and shuffles them, `records` keeps account; `onevision` cleans
R1-Onevision's replies.
"""
