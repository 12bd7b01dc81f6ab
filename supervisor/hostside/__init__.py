"""The host side: what runs on every machine that noray uses, and the only noray code that does.

It ships as text: a zipapp of this folder (under the name `noray_host`), run by whatever Python >= 3.9 the host has, over
`local` and `ssh` alike. So it imports the standard library only, uses relative imports only, and nobody imports it.

    link    the controller's conversation with this host; dies with its connection, and nothing else dies with it
    keeper  owns one run: starts it, waits for it, fences it, stops its tree; outlives link and controller
    pump    moves the run's output into its log; is the keeper's heir, as the keeper is the pump's

Files, in the order a start passes through them:

    main.py     picks the program            spawn.py    the start protocol, step by step
    link.py     one controller's link        birth.py    a keeper begins: a new run, or an abandoned one
    runstate.py how a run is told            keeper.py   the loop that owns one run
    reactor.py  poll, timers, JSON lines     pump.py     output into log segments
    rundir.py   what is on disk, versioned   ladder.py   how a stop escalates (pure)
    claims.py   GPUs, ports, names, held     tree.py     everything a run ever started, and signalling it
    ports.py    choose, bind-test, who has   fence.py    out of Dynamo's routing, at once
    procfs.py   /proc, read once, in one way http.py     one HTTP request without blocking the link
    output.py   the keeper's end of the pump  fencing.py when it is fenced, and how often
    facts.py    what a host says of itself   logout.py   what a logout ends, and where a keeper outlives it
    tail.py     stream a log, own channel    dbus.py     as much D-Bus as that takes
"""

VERSION = 1  # of the conversation and of every record on disk; older ones stay readable for ever
