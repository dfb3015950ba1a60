"""What a run needs around its loop. The door is `open.open_run`: config.py and presets.py are its options,
sharding.py lays the model out, checkpoint.py, state.py and storage.py keep its state, log.py, observe.py,
heldout.py and samples.py tell how it goes.
"""
