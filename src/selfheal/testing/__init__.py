"""The test harness: the real engine under virtual time, laws to hold it to, doubles, fault servers, conformance.

Import what you need from its modules; `import selfheal` never loads any of this.
"""
