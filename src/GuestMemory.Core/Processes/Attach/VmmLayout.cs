using System.Runtime.InteropServices;

namespace GuestMemory.Core.Processes;

/// <summary>Where VMMs put the memory of their guests, by their sources.</summary>
internal static class VmmLayout
{
    private const ulong Mebi = 1UL << 20, Gibi = 1UL << 30, Above = 4 * Gibi;

    /// <summary>The ranges of a QEMU machine's main memory; null where this machine is not known.</summary>
    /// <param name="architecture">As in the program's name: "x86_64".</param>
    /// <param name="machine">The machine's options.</param>
    /// <param name="size">All of the memory in bytes.</param>
    public static IReadOnlyList<GuestLayoutRange>? OfQemu(string architecture, IReadOnlyDictionary<string, string> machine, ulong size)
    {
        var type = machine.GetValueOrDefault("type");
        return architecture switch
        {
            "x86_64" or "i386" => OfPc(type ?? "pc", machine, size),
            "aarch64" or "arm" when IsType(type, "virt") => Split(size, Gibi, size, 0),
            "aarch64" when type == "sbsa-ref" => Split(size, 1024 * Gibi, size, 0),
            "riscv64" or "riscv32" when IsType(type, "virt") => Split(size, 2 * Gibi, size, 0),
            "s390x" => Split(size, 0, size, 0),
            "ppc64" when type is null || IsType(type, "pseries") => Split(size, 0, size, 0),
            _ => null,
        };
    }

    /// <summary>Firecracker: below 3 GiB and from 4 GiB on, on aarch64 from 2 GiB on.</summary>
    public static IReadOnlyList<GuestLayoutRange> OfFirecracker(ulong size, Architecture architecture) => architecture == Architecture.X64 ? Split(size, 0, 3 * Gibi, Above) : Split(size, 2 * Gibi, size, 0);

    /// <summary>cloud-hypervisor: below 3 GiB and from 4 GiB on, on aarch64 from 1 GiB to the devices below 4 GiB, and from there.</summary>
    public static IReadOnlyList<GuestLayoutRange> OfCloudHypervisor(ulong size, Architecture architecture) => architecture == Architecture.X64
        ? Split(size, 0, 3 * Gibi, Above) : Split(size, Gibi, 0xfc00_0000 - Gibi, Above);

    /// <summary>crosvm: its parts as they are mapped, the first at 0 and the second from 4 GiB on; on aarch64 one, from 2 GiB on. Null where there are more.</summary>
    public static IReadOnlyList<GuestLayoutRange>? OfCrosvm(IReadOnlyList<ulong> parts, Architecture architecture) => (architecture, parts) switch
    {
        (Architecture.X64, [var low]) => [new GuestLayoutRange(0, low)],
        (Architecture.X64, [var low, var high]) => [new GuestLayoutRange(0, low), new GuestLayoutRange(Above, high)],
        (Architecture.Arm64, [var all]) => [new GuestLayoutRange(2 * Gibi, all)],
        _ => null,
    };

    /// <summary>hw/i386/pc_piix.c, pc_q35.c, microvm.c.</summary>
    private static IReadOnlyList<GuestLayoutRange>? OfPc(string type, IReadOnlyDictionary<string, string> machine, ulong size)
    {
        ulong? limit = null;
        if (machine.TryGetValue("max-ram-below-4g", out var text))
        {
            limit = QemuOptions.SizeOf(text, 1);
            if (limit is null or 0) return null;
        }

        if (type == "microvm") return limit is null ? Split(size, 0, 3 * Gibi, Above) : null;
        ulong low;
        if (IsType(type, "q35") || type.StartsWith("pc-q35-", StringComparison.Ordinal))
        {
            low = size >= 0xb000_0000 ? 2 * Gibi : 0xb000_0000;
            if (limit < low) low = limit.Value;
        }
        else if (type == "pc" || (type.StartsWith("pc-i440fx-", StringComparison.Ordinal) && !type.StartsWith("pc-i440fx-1.", StringComparison.Ordinal)))
        {
            low = limit ?? 0xe000_0000;
            if (size >= low) low = Math.Min(low, 3 * Gibi);
        }
        else
        {
            return null;
        }

        // A guest of an AMD host whose memory reaches 1 TiB has it elsewhere.
        return size > 1000 * Gibi ? null : Split(size, 0, low, Above);
    }

    private static bool IsType(string? type, string name) => type is not null && (type == name || type.StartsWith($"{name}-", StringComparison.Ordinal));

    private static IReadOnlyList<GuestLayoutRange> Split(ulong size, ulong first, ulong below, ulong above) => size <= below
        ? [new GuestLayoutRange(first, size)] : [new GuestLayoutRange(first, below), new GuestLayoutRange(above, size - below)];
}
