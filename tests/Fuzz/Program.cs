using GuestMemory.Fuzz;
using SharpFuzz;

// GuestMemory.Fuzz                 lists the targets
// GuestMemory.Fuzz TARGET          runs under afl-fuzz, or once on the standard input
// GuestMemory.Fuzz TARGET FILE...  runs each file once, and tells what it finds
if (args.Length == 0)
{
    foreach (var item in FuzzTargets.All) Console.WriteLine($"{item.Name,-18}{item.Description}");
    return 0;
}

if (FuzzTargets.All.FirstOrDefault(item => item.Name == args[0]) is not { } target)
{
    Console.Error.WriteLine($"There is no target '{args[0]}'; there are {string.Join(", ", FuzzTargets.All.Select(item => item.Name))}.");
    return 2;
}

if (args.Length == 1)
{
    Fuzzer.OutOfProcess.Run(stream =>
    {
        using var input = new MemoryStream();
        stream.CopyTo(input);
        FuzzRunner.Run(target, input.ToArray());
    });
    return 0;
}

// Not before: an instrumented library runs in Fuzzer.Run alone.
if (target.Missing?.Invoke() is { } missing)
{
    Console.Error.WriteLine($"{target.Name} cannot run here: {missing}.");
    return 3;
}

var findings = 0;
foreach (var file in args[1..])
{
    try
    {
        FuzzRunner.Run(target, File.ReadAllBytes(file));
    }
#pragma warning disable CA1031 // Whatever escapes is what is looked for.
    catch (Exception exception)
    {
        findings++;
        Console.WriteLine($"{file}: {exception}");
    }
#pragma warning restore CA1031
}

return findings == 0 ? 0 : 1;
