"""Teachers: who gives the signal. There is no base class; a teacher has the methods of what it can do.

| method | gives |
|---|---|
| `demonstrate(tasks, rng)` | demonstrations: text to imitate |
| `score(tokens_BT)` | a `Signal` (`signal.py`): its next-token distributions, dense or top k, with what is needed to use them rightly |
| `intervene(groups)` | the groups changed, after the reward and before the advantage |

`tutelage.objectives.distillation` turns a signal into a loss.
"""
