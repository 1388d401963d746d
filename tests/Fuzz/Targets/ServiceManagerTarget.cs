using System.Globalization;
using System.Text;
using GuestMemory.UffdHost;

namespace GuestMemory.Fuzz.Targets;

/// <summary>What a service manager passes: the values of LISTEN_PID, LISTEN_FDS and LISTEN_FDNAMES, a line each.</summary>
internal static class ServiceManagerTarget
{
    private const int Process = 4321;

    public static void Run(byte[] input)
    {
        var lines = Encoding.UTF8.GetString(input).Split('\n', 3);
        var names = Systemd.NamesOf(lines[0], lines.ElementAtOrDefault(1), lines.ElementAtOrDefault(2), Process);
        if (names.Count > 0) Check.Same(Process.ToString(CultureInfo.InvariantCulture), lines[0], "the process that descriptors are for");
        foreach (var name in names)
        {
            if (VmRecords.Parse(name) is not var (prefix, id, kind)) continue;
            // By this name the manager is asked to close it.
            Check.Same(name, VmRecords.Name(prefix, id, kind), "the name of a descriptor");
            Check.True(id is > 0 and < int.MaxValue - Systemd.MaxDescriptors, $"after VM {id} no further one can have a number");
        }
    }
}
