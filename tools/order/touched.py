#!/usr/bin/env python3
"""Says which functions of a running program are entered, each once, in the order of their first entry.

    touched.py PID SECONDS > functions

A breakpoint stands at every function of the program; the first thread to reach one removes it and goes on.
What remains untouched is what an idle program could do without in memory.
Needs Linux on x86-64, the right to trace PID, and a program with its symbols.
"""
import ctypes, os, signal, struct, sys, time

libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
libc.ptrace.restype = ctypes.c_long
PEEKUSER, POKEUSER, CONT, DETACH, SEIZE, INTERRUPT, LISTEN = 3, 6, 7, 17, 0x4206, 0x4207, 0x4208
TRACE_CLONE = 1 << 3
RIP = 16 * 8
WALL, NOHANG = 0x40000000, 1
EVENT_STOP = 128


def ptrace(request, thread, address=0, data=0):
    ctypes.set_errno(0)
    answer = libc.ptrace(request, thread, address, data)
    if answer == -1 and ctypes.get_errno():
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), f"ptrace {request} of {thread}")
    return answer


def functions(path):
    """Address in the file's own terms -> names, for each function of the text section."""
    elf = open(path, "rb").read()
    (sections_at,) = struct.unpack_from("<Q", elf, 40)
    size, count, names_index = struct.unpack_from("<HHH", elf, 58)
    sections = [struct.unpack_from("<IIQQQQIIQQ", elf, sections_at + i * size) for i in range(count)]
    found = {}
    for _name, kind, _flags, _address, offset, length, link, *_rest in sections:
        if kind != 2:  # SHT_SYMTAB
            continue
        strings = sections[link][4]
        for at in range(offset, offset + length, 24):
            name, info, _other, _section, value, extent = struct.unpack_from("<IBBHQQ", elf, at)
            if info & 15 == 2 and value and extent:  # STT_FUNC
                end = elf.index(b"\0", strings + name)
                found.setdefault(value, []).append(elf[strings + name:end].decode())
    return found


def base_of(pid, path):
    for line in open(f"/proc/{pid}/maps"):
        if line.rstrip().endswith(path):
            return int(line.split("-")[0], 16)
    sys.exit(f"{pid} does not run {path}")


def main():
    pid, seconds = int(sys.argv[1]), float(sys.argv[2])
    path = os.readlink(f"/proc/{pid}/exe")
    base = base_of(pid, path)
    names = {base + value: found for value, found in functions(path).items()}
    threads = {int(thread) for thread in os.listdir(f"/proc/{pid}/task")}
    for thread in threads:
        ptrace(SEIZE, thread, 0, TRACE_CLONE)
    for thread in threads:
        ptrace(INTERRUPT, thread)
        os.waitpid(thread, WALL)
    memory = os.open(f"/proc/{pid}/mem", os.O_RDWR)
    saved = {}
    for address in names:
        saved[address] = os.pread(memory, 1, address)
        os.pwrite(memory, b"\xcc", address)
    left = set(names)
    for thread in threads:
        ptrace(CONT, thread)
    order, until = [], time.monotonic() + seconds

    def settle(thread, status):
        """Deals with one stop and lets the thread go on."""
        if os.WIFEXITED(status) or os.WIFSIGNALED(status):
            threads.discard(thread)
            return
        threads.add(thread)
        stop, event = os.WSTOPSIG(status), status >> 16
        if event:
            return ptrace(CONT, thread)
        if stop == signal.SIGTRAP:
            at = ptrace(PEEKUSER, thread, RIP) - 1
            if at in names:
                if at in left:
                    os.pwrite(memory, saved[at], at)
                    left.discard(at)
                    order.append(at)
                ptrace(POKEUSER, thread, RIP, at)
                return ptrace(CONT, thread)
        ptrace(CONT, thread, 0, stop)

    while time.monotonic() < until:
        thread, status = os.waitpid(-1, WALL | NOHANG)
        if thread == 0:
            time.sleep(0.0005)
            continue
        settle(thread, status)
    # Every breakpoint is taken away while nothing moves.
    for thread in list(threads):
        ptrace(INTERRUPT, thread)
    waiting = set(threads)
    while waiting:
        thread, status = os.waitpid(-1, WALL)
        if os.WIFEXITED(status) or os.WIFSIGNALED(status):
            threads.discard(thread)
            waiting.discard(thread)
        elif status >> 16 == EVENT_STOP:
            waiting.discard(thread)
        else:
            settle(thread, status)
    for address in left:
        os.pwrite(memory, saved[address], address)
    for thread in threads:
        try:
            ptrace(DETACH, thread)
        except OSError:
            pass
    for address in order:
        for name in names[address]:
            print(name)
    print(f"{len(order)} of {len(names)} functions", file=sys.stderr)


main()
