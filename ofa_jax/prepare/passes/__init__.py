"""Public data sets -> records in shards, in three passes with files between them: index (an input), decide (all), write (an output).

Every pass writes a file a unit, under its name in one move, and a file that is there is never made again: a build goes on where it was
killed, on one machine or many, and its bytes are those of an uninterrupted one.
"""
