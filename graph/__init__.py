"""The nouns everyone shares and what is learned: who calls whom, what to prepare when.

Pure: no I/O, no clock, no asyncio. Every function that needs the time takes `now` (seconds, any epoch).
"""
