"""The core decides and never acts: `(state, fact, now) -> (state', actions)`, with no clock, no await, no chance and no file.

facts.py      what the world told us          actions.py    what we ask of it
process.py    one process: the whole table    fleet.py      all of them: order, adoption, stopping
restart.py    again, when, or give up, why    diagnosis.py  what an exit means
hand.py       what was stopped by name        left.py       what is not as it was asked for
memory.py     what the next controller knows
status.py     a fleet as the operator sees it snapshot.py   the shape of that, on the wire
"""
