using GuestMemory.Bench;

// bench serve SOCKET IMAGE       a handler in a process of its own, until its input ends
// bench faults [--mib N] [--pairs N] [--write FILE]
return args switch
{
    ["serve", var socket, var image] => Server.Run(socket, image),
    ["faults", .. var options] => new FaultScenario(options).Run(),
    [] => new FaultScenario([]).Run(),
    _ => Usage(),
};

static int Usage()
{
    Console.Error.WriteLine("usage: ./build.sh Bench [faults [--mib 256] [--pairs 15] [--write docs/performance.md]]");
    return 2;
}
