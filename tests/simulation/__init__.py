"""discoro in a box: 2 to 50 meshes in one process, on a clock moved by hand, with faults; and its promises, judged afterwards.

How it plays together: a seed is drawn (`drawing`; hypothesis draws too, and shrinks what it finds: `programs.programs`) into
a `Program` of steps (`programs`), which `stage.play` performs on `loop`, `mortal_network` and `shared`; what happened is a
history of events, and `promises.broken` says in words which promise it breaks. `world.simulate(seed)` is all of that.

What is real: mesh, links, coroutines, servers, queues, channels, names, files. What is not: the transport, the search for
others, the clock, the disk; and workers, which are processes.

A seed fails? `python -m tests.simulation --seed N --trace` shows what happened. Once it is mended, N goes into `seeds.txt`,
with a word why. Something new is to be simulated? A class in `programs.py`, its drawing in `drawing.py`, its doing in
`stage.py` or `shared.py`. A new promise? A function in PROMISES (`promises.py`), a history that breaks it in
`test_promises.py`, and in `mutants.py` a way to break discoro so that it does.
"""
