using System.Text;
using GuestMemory.Core;
using GuestMemory.Core.Linux;

namespace GuestMemory.Fuzz.Targets;

/// <summary>What a guest's kernel keeps: 'b' and its BTF, 'v' and its VMCOREINFO, or 's', six places (2 bytes each) and the memory that its tables of symbols lie in.</summary>
internal static class KernelDataTarget
{
    private const ulong Start = 0x10_0000;
    private const int Size = 0x1_0000;

    private static readonly Lazy<GuestMemoryMmap> s_memory = new(static () => GuestMemoryMmap.FromRanges([(new GuestAddress(Start), Size)]));

    public static void Run(byte[] input)
    {
        if (input.Length == 0) return;
        var rest = input[1..];
        switch (input[0])
        {
            case (byte)'b':
                Types(rest);
                break;
            case (byte)'v':
                Info(rest);
                break;
            case (byte)'s' when rest.Length > 12:
                Symbols(rest);
                break;
        }
    }

    private static void Types(byte[] bytes)
    {
        if (!Check.TryParse(() => BtfTypes.Parse(bytes), out var types, GuestMemoryError.InvalidKernelData)) return;
        if (!Check.TryParse(() => types.Offsets("task_struct", "pid", "comm", "tasks"), out var offsets, GuestMemoryError.InvalidKernelData)) return;
        Check.True(offsets.Length == 3 && offsets.All(static offset => offset is null or >= 0), "an offset below 0");
        // The fields that are needed are there, or it says so.
        Check.TryParse(() => new TaskFields(types), out _, GuestMemoryError.InvalidKernelData);
    }

    private static void Info(byte[] bytes)
    {
        if (VmcoreInfo.Parse(bytes) is not { } info) return;
        Check.True(Encoding.Latin1.GetString(bytes) == info.Text, "another text");
        _ = (info.Release, info.Symbol("swapper_pg_dir"), info.Number("phys_base"), info.Offset("uts_namespace.name"), info.Hex("KERNELOFFSET"), info.Plain("PAGESIZE"));
    }

    private static void Symbols(byte[] bytes)
    {
        var memory = s_memory.Value;
        var content = new byte[Size];
        bytes.AsSpan(12, Math.Min(Size, bytes.Length - 12)).CopyTo(content);
        memory.WriteExact(new GuestAddress(Start), content);
        var places = new KallsymsPlaces(Place(0), Place(1), Place(2), Place(3), Place(4), (bytes[10] & 1) == 0 ? Place(5) : null, 0x1234_0000);
        if (Check.TryParse(() => Kallsyms.Read(memory, places, CancellationToken.None), out var symbols, GuestMemoryError.InvalidKernelData))
        {
            var all = symbols.All().ToArray();
            Check.True(all.Length <= symbols.Count && all.All(static symbol => symbol.Name.Length > 0), "symbols that are not there");
            Check.True(all.Length == 0 || symbols.Find(all[0].Name).ContainsKey(all[0].Name), "a symbol that is not found");
        }

        var digits = new MemorySearch(KallsymsFinder.Digits) { Context = 0 }.Find(memory);
        if (!Check.TryParse(() => KallsymsFinder.Find(memory, digits, CancellationToken.None).ToArray(), out var found, GuestMemoryError.InvalidKernelData)) return;
        foreach (var each in found) Check.TryParse(() => Kallsyms.Read(memory, each, CancellationToken.None).Find("x"), out _, GuestMemoryError.InvalidKernelData);

        ulong Place(int i) => Start + bytes[2 * i] + ((ulong)bytes[(2 * i) + 1] << 8);
    }
}
