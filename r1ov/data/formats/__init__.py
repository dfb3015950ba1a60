"""Other people's data files. The door is `mixture.open_data(names)`: records without end, by number.

From the inside out: `layouts` reads a row into a record, with `columns`, `choices`, `pictures`; `rows` reads
files, `files` finds them, `reader` joins them, `mixture` mixes and shuffles, `tally` keeps account;
`onevision` cleans R1-Onevision's replies.
"""
