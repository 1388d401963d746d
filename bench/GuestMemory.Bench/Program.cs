using GuestMemory.Bench;

// bench serve SOCKET IMAGE [--strategy S] [--window N] [--record FILE] [--replay FILE]
//                                a handler in a process of its own, until its input ends
// bench faults [--mib N] [--pairs N] [--write FILE]
// bench memory|bitmaps|log|requests|tracking|search|export|live [--pairs N] [--attempts N] [--cpu N] [--write FILE]
// bench xen --baseline PROGRAM [--pairs N] [--attempts N]         in domain 0 of a Xen, which bench/xen.ps1 boots
// bench section FILE NAME          writes what it is given as input into a section of a page
// bench rows NAME                ours of such a table, in a process of its own: a line in, a line of figures out
// bench shell [--mib N] [--pairs N] [--calls N] [--write FILE]      the built module in pwsh
// bench strategies [--mib N,N] [--rounds N] [--write FILE]
// bench cold [--mib N] [--vms N] [--touches N] [--rounds N] [--write FILE]         an image on a slow disk
// bench working-set [--mib N] [--touches N] [--rounds N] [--write FILE]           records with and without pages, there
// bench neighbours [--touches N] [--rounds N] [--write FILE]                      a quiet VM beside one that is not
// bench disk [--mib N] [--rounds N] [--milliseconds N] [--write FILE]             a vhost-user disk beside qemu-storage-daemon's
// bench serve-disk SOCKET IMAGE  such a disk in a process of its own, until its input ends
// bench host [--mib N] [--vms N] [--rounds N] [--write FILE]        the handler's own process, as Package publishes it
return args switch
{
    ["serve", var socket, var image, .. var rest] => Server.Run(socket, image, rest),
    ["faults", .. var options] => new FaultScenario(options).Run(),
    ["rows", var name] => Rows(name).Run(),
    ["section", var page, var name] => Write(page, name),
    ["memory" or "bitmaps" or "log" or "requests" or "tracking" or "search" or "export" or "xen", .. var options] => new RowScenario(Rows(args[0]), options).Run(),
    ["live", .. var options] => Live(options),
    ["shell", .. var options] => new ShellScenario(options).Run(),
    ["strategies", .. var options] => new StrategyScenario(options).Run(),
    ["cold", .. var options] => new ColdScenario(options).Run(),
    ["working-set", .. var options] => new WorkingSetScenario(options).Run(),
    ["neighbours", .. var options] => new NeighbourScenario(options).Run(),
    ["disk", .. var options] => new DiskScenario(options).Run(),
    ["serve-disk", var socket, var image] => DiskScenario.Serve(socket, image),
    ["host", .. var options] => new HostScenario(options).Run(),
    [] => new FaultScenario([]).Run(),
    _ => Usage(),
};

static RowSet Rows(string name) => name switch
{
    "memory" => new MemoryRows(),
    "bitmaps" => new BitmapRows(),
    "requests" => new RequestRows(),
    "tracking" => new TrackingRows(),
    "search" => new SearchRows(),
    "export" => new ExportRows(),
    "live" => new LiveRows(),
    "xen" => new XenRows(),
    _ => new LogRows(),
};

static int Live(string[] options)
{
    BenchTools.PublishHost();
    return new RowScenario(new LiveRows(), options).Run();
}

static int Write(string page, string section)
{
    BenchTools.WriteSection(page, section, Console.In.ReadToEnd());
    return 0;
}

static int Usage()
{
    Console.Error.WriteLine("usage: ./build.sh Bench [faults [--mib 256] [--pairs 15] [--write docs/performance.md]]");
    Console.Error.WriteLine("       ./build.sh Bench memory|bitmaps|log|requests|tracking|search|export|live [--pairs 15] [--attempts 4] [--cpu 0] [--write docs/performance.md]");
    Console.Error.WriteLine("       ./build.sh Bench shell [--mib 1024] [--pairs 9] [--calls 1000000] [--write docs/performance.md]");
    Console.Error.WriteLine("       ./build.sh Bench strategies [--mib 256,1024] [--rounds 5] [--write docs/performance.md]");
    Console.Error.WriteLine("       ./build.sh Bench cold [--mib 256] [--vms 8] [--touches 500] [--rounds 9] [--write docs/performance.md]");
    Console.Error.WriteLine("       ./build.sh Bench working-set [--mib 256] [--touches 4096] [--rounds 5] [--write docs/performance.md]");
    Console.Error.WriteLine("       ./build.sh Bench neighbours [--touches 20000] [--rounds 5] [--write docs/performance.md]");
    Console.Error.WriteLine("       ./build.sh Bench disk [--mib 512] [--rounds 9] [--milliseconds 1000] [--write docs/performance.md]");
    Console.Error.WriteLine("       ./build.sh Bench xen [--pairs 5] [--attempts 1] [--write docs/performance.md]");
    Console.Error.WriteLine("       ./build.sh Bench host [--mib 1024] [--vms 50] [--rounds 9] [--write docs/performance.md]");
    return 2;
}
