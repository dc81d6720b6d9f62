"""The pure core: no clock, no random source, no IO, no logging, no thread.

Everything in this folder is a function of its inputs. It imports attrs and the pure standard library only; a test
reads the imports and fails otherwise.
"""
