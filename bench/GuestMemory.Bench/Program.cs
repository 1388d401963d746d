using GuestMemory.Bench;

// bench serve SOCKET IMAGE [--strategy S] [--window N] [--record FILE] [--replay FILE]
//                                a handler in a process of its own, until its input ends
// bench faults [--mib N] [--pairs N] [--write FILE]
// bench strategies [--mib N] [--rounds N]
// bench bitmaps [--pairs N] [--cpu N] [--write FILE]
// bench bitmap-rows              ours of the bitmaps, in a process of its own: a line in, a line of figures out
return args switch
{
    ["serve", var socket, var image, .. var rest] => Server.Run(socket, image, rest),
    ["faults", .. var options] => new FaultScenario(options).Run(),
    ["strategies", .. var options] => new StrategyScenario(options).Run(),
    ["bitmap-rows"] => new BitmapRows().Run(),
    ["bitmaps", .. var options] => new BitmapScenario(options).Run(),
    [] => new FaultScenario([]).Run(),
    _ => Usage(),
};

static int Usage()
{
    Console.Error.WriteLine("usage: ./build.sh Bench [faults [--mib 256] [--pairs 15] [--write docs/performance.md]]");
    Console.Error.WriteLine("       ./build.sh Bench strategies [--mib 256] [--rounds 5]");
    Console.Error.WriteLine("       ./build.sh Bench bitmaps [--pairs 15] [--cpu 0] [--write docs/performance.md]");
    return 2;
}
