"""The host side: what runs on every machine that noray uses, and the only noray code that does.

It ships as text: a zipapp of this folder (under the name `noray_host`), run by whatever Python >= 3.9 the host has, over
`local` and `ssh` alike. So it imports the standard library only, uses relative imports only, and nobody imports it.

    link    the controller's conversation with this host; dies with its connection, and nothing else dies with it
    keeper  owns one run: starts it, waits for it, fences it, stops its tree; outlives link and controller
    pump    moves the run's output into its log; is the keeper's heir, as the keeper is the pump's

Files:

    talking     main.py     picks the program                  link.py     one controller's link
                facts.py    what a host says of itself         tail.py     stream a log over a channel of its own
                runstate.py how a run is told                  http.py     one HTTP request without blocking the link
                watches.py  ask again and again, tell what is new
                loading.py  what moves of a run that starts
                questions.py one question, one answer: for doctor, eject and survey
    a run       spawn.py    the start protocol, step by step   birth.py    a keeper begins: a new run, or an abandoned one
                keeper.py   the loop that owns one run         rundir.py   what is on disk, versioned
    its output  pump.py     from a FIFO into log segments      output.py   the keeper's end of the pump
                times.py    when it was written
    its tree    tree.py     who belongs to it, signalling      cgroup.py   one of its own, where that can be had
                roster.py   who was seen, for the heir         shm.py      what it leaves in /dev/shm
    its end     ladder.py   how a stop escalates (pure)        ending.py   carrying that out, and proving nobody is left
                fence.py    out of Dynamo's routing, at once   fencing.py  when, and how often
                postmortem.py  what the kernel knows of an end
    its GPUs    lending.py  clean, its own, given back         gpus.py     what a look shows, and what follows (pure)
                nvml.py     the only file that knows pynvml    holders.py  who holds a GPU, by /proc
                doctor.py   who is on them, and orphans ended  owners.py   which process is of which run
                aside.py    work that may hang, in a child with a deadline
    the host    claims.py   GPUs, ports, names, held           ports.py    choose, bind-test, who has them
                procfs.py   /proc, read once, in one way       reactor.py  poll, timers, JSON lines
                logout.py   what ends when its user logs out   scope.py    where that does not reach, and who stops when
                dbus.py     as much D-Bus as that takes        libc.py     the C library
                survey.py   all that an operator wants to know of it
                eject.py    the host without any trace of us
"""

VERSION = 1  # of the conversation and of every record on disk; older ones stay readable for ever
