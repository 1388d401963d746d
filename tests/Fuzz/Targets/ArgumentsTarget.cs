using System.Text;
using GuestMemory.Core;
using GuestMemory.Core.Userfault;

namespace GuestMemory.Fuzz.Targets;

/// <summary>The command line of the handler's process, an argument a line.</summary>
internal static class ArgumentsTarget
{
    public static void Run(byte[] input)
    {
        var arguments = Encoding.UTF8.GetString(input).Split('\n');
        if (!Check.TryParse(() => UffdArguments.Parse(arguments), out var options, GuestMemoryError.ValueNotSupported)) return;
        Check.True(Enum.IsDefined(options.Strategy) && Enum.IsDefined(options.OnError), "a choice without a name");
        Check.True(options.SocketPath is not null && options.MemoryPath is not null && options.LayerPaths.All(static path => path is not null), "an option without its value");
        var written = UffdArguments.From(options).ToArray();
        Check.SameItems<string>(written, UffdArguments.From(UffdArguments.Parse(written)).ToArray(), "the arguments");
    }
}
