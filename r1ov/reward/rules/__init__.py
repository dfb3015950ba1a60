"""What the rewards are judged by. The door is `compare.same_math`; what leads to it and what it rests on:

reading.py: one spelling, the answer of a reply, choices. numbers.py, boxes.py: the two plain values.
compare.py: equal as mathematics, over expression.py (text to forms) and form.py (their values).
check.py: can every gold be scored? workers.py: a user's reward and math-verify, each in its own process.
"""
