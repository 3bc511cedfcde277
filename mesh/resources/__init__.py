"""Every YAML kind as frozen values, each in a module that needs neither pydantic nor a YAML parser.

``schema*.py`` hold the strict models of what may stand in a file and turn them into these
values; ``documents.py`` reads files and locates problems; ``loader.py`` drives both.
"""
