"""From files to processes: who runs where, with which options. Pure; nothing here has met a host yet but through its facts.

build.py   deployment + inventory -> Plan        launch.py   one process + what its host said -> argv, env, ports
diff.py    what changes from one plan to another
"""
