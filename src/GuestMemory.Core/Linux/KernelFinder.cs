using GuestMemory.Core.Paging;

namespace GuestMemory.Core.Linux;

/// <summary>
/// Finds a Linux kernel in memory: by its VMCOREINFO, which says where all else is, or where it has none by the tables of its symbols. What
/// is found counts only when the page table leads to the kernel's own name (init_uts_ns).
/// </summary>
internal sealed class KernelFinder(GuestMemoryMmap memory, CancellationToken cancellation)
{
    private const ulong StartKernelMap = 0xffff_ffff_8000_0000;

    // CONFIG_PHYSICAL_START.
    private const ulong LinkAddress = StartKernelMap + (16 << 20);

    // More than any memory has, so that one that was made to take long does not.
    private const int MaxMatches = 10_000;
    private const int MaxTried = 256;
    private const int MaxFound = 16;

    // A field of struct new_utsname.
    private const int UtsField = 65;

    private static readonly MemoryPattern s_banner = MemoryPattern.FromText("Linux version ");

    private string? _refusal;

    public GuestKernel Find(Action<ulong>? progress)
    {
        GuestKernel? first = null;
        foreach (var kernel in ByVmcoreInfo(progress))
        {
            if (IsCurrent(kernel)) return kernel;
            first ??= kernel;
        }

        if (first is not null) return first;
        foreach (var kernel in BySymbols(progress))
        {
            if (IsCurrent(kernel)) return kernel;
            first ??= kernel;
        }

        if (first is not null) return first;
        throw new GuestMemoryException(GuestMemoryError.KernelNotFound, _refusal is null
            ? $"No Linux kernel was found in the memory ({memory}): neither VMCOREINFO nor the tables of kernel symbols are in it. Either the guest is no Linux for x86-64 or aarch64 or has not booted yet, or the regions are not at the guest's physical addresses."
            : $"No Linux kernel was found in the memory ({memory}) that can be read: {_refusal}");
    }

    private IEnumerable<GuestKernel> ByVmcoreInfo(Action<ulong>? progress)
    {
        var search = new MemorySearch(MemoryPattern.FromText(VmcoreInfo.Begin)) { Alignment = 8, Context = 0 };
        // What is tried costs seconds each; after so many this is a memory that was made to take long.
        var (tried, found) = (0, 0);
        foreach (var match in search.Find(memory, progress, cancellation).Take(MaxMatches))
        {
            if (VmcoreInfo.TryRead(memory, match.Address, cancellation) is not { } info) continue;
            if (Attempt(() => FromVmcoreInfo(info)) is { } kernel)
            {
                found++;
                yield return kernel;
            }

            if (++tried == MaxTried || found == MaxFound) yield break;
        }
    }

    private IEnumerable<GuestKernel> BySymbols(Action<ulong>? progress)
    {
        var digits = new MemorySearch(KallsymsFinder.Digits) { Context = 0 }.Find(memory, progress, cancellation);
        foreach (var places in KallsymsFinder.Find(memory, digits, cancellation))
        {
            if (Attempt(() => FromSymbols(places)) is { } kernel) yield return kernel;
        }
    }

    /// <summary>
    /// Whether a kernel is the one that runs, not a whole one from before a restart, whose memory nobody has needed yet. On x86-64 each kernel
    /// overwrites the page table in the first MiB that its processors start with (trampoline_pgd), the last entry of which is that of its own.
    /// </summary>
    private bool IsCurrent(GuestKernel kernel)
    {
        const ulong LastEntry = 511 * 8, Address = 0x000f_ffff_ffff_f000;
        // aarch64 has nothing of the kind.
        if (kernel.Architecture != GuestArchitecture.X64) return true;
        if (!memory.CheckRange(new GuestAddress(kernel.PageTable), 4096)) return false;
        var entry = KernelData.ReadUInt64(memory, kernel.PageTable + LastEntry, "The kernel's page table", cancellation) & Address;
        for (ulong page = 0; page < 1 << 20; page += 4096)
        {
            if (memory.CheckRange(new GuestAddress(page + LastEntry), 8) && (KernelData.ReadUInt64(memory, page + LastEntry, "A page", cancellation) & Address) == entry) return true;
        }

        return false;
    }

    private GuestKernel? Attempt(Func<GuestKernel?> work)
    {
        try
        {
            return work();
        }
        catch (GuestMemoryException exception) when (exception.Error is GuestMemoryError.InvalidKernelData or GuestMemoryError.InvalidGuestAddress or GuestMemoryError.PartialBuffer or GuestMemoryError.GuestAddressOverflow
            || GuestVirtualMemory.IsTranslationError(exception.Error))
        {
            // Remains of a kernel that ran before, or something that looks like one.
            _refusal ??= exception.Message;
            return null;
        }
    }

    private GuestKernel? FromVmcoreInfo(VmcoreInfo info)
    {
        if (info.Symbol("swapper_pg_dir") is not { } root || info.Symbol("init_uts_ns") is not { } uts || info.Symbol("_stext") is not { } text) return null;
        ulong delta;
        PageTableFormat format;
        if (info.Number("phys_base") is { } physBase)
        {
            delta = unchecked(StartKernelMap - (ulong)physBase);
            format = PageTableFormat.X64(info.Number("pgtable_l5_enabled") == 1 ? 5 : 4);
        }
        else if (info.Number("kimage_voffset") is { } offset)
        {
            delta = (ulong)offset;
            var bits = info.Number("TCR_EL1_T1SZ") is { } unused ? 64 - unused : info.Number("VA_BITS") ?? 48;
            var pageSize = info.Plain("PAGESIZE") ?? 4096;
            if (bits is < 36 or > 52 || pageSize is not (4096 or 16384 or 65536)) return null;
            format = PageTableFormat.Arm64((int)bits, (int)pageSize);
        }
        else
        {
            throw KernelData.Invalid($"the kernel {info.Release} is neither for x86-64 nor for aarch64.");
        }

        var space = new GuestVirtualMemory(memory, root - delta, format) { IsUpperHalf = format.Architecture == GuestArchitecture.Arm64 };
        var names = ReadUts(space, uts + (ulong)(info.Offset("uts_namespace.name") ?? 0), delta);
        if (names is null || names[2] != info.Release) throw KernelData.Invalid($"the VMCOREINFO of Linux {info.Release} does not lead to a kernel of that name.");
        var symbols = FindSymbols(info, text, delta);
        var kaslr = info.Hex("KERNELOFFSET");
        return Build(space, delta, names, text, symbols, kaslr, info.Number("phys_base") is { } physical && kaslr is { } moved ? unchecked(moved + (ulong)physical) : null, info.Text);
    }

    private GuestKernel? FromSymbols(KallsymsPlaces places)
    {
        var symbols = Kallsyms.Read(memory, places, cancellation);
        var found = symbols.Find("linux_banner", "init_uts_ns", "_text", "_stext", "init_top_pgt", "swapper_pg_dir");
        if (!found.TryGetValue("linux_banner", out var banner) || !found.TryGetValue("init_uts_ns", out var uts) || !(found.TryGetValue("_text", out var text) || found.TryGetValue("_stext", out text)))
            throw KernelData.Invalid("the kernel has no VMCOREINFO, and no symbols of its data (CONFIG_KALLSYMS_ALL).");
        var isX64 = found.TryGetValue("init_top_pgt", out var root);
        if (!isX64 && !found.TryGetValue("swapper_pg_dir", out root)) throw KernelData.Invalid("the kernel has no VMCOREINFO, and no symbol of its page table.");
        var first = places.Names - Math.Min(places.Names, KernelData.ImageReach);
        foreach (var match in new MemorySearch(s_banner) { Context = 0 }.Find(memory, new GuestAddress(first), 2 * KernelData.ImageReach, cancellation: cancellation).Take(MaxMatches))
        {
            var delta = banner - match.Address;
            // What precedes the relocation has other addresses; an image begins at a multiple of 64 KiB.
            if (delta % 0x10000 != 0) continue;
            foreach (var format in PageTableFormat.All(isX64 ? GuestArchitecture.X64 : GuestArchitecture.Arm64))
            {
                var space = new GuestVirtualMemory(memory, root - delta, format) { IsUpperHalf = !isX64 };
                if (space.TryTranslate(banner, cancellation)?.Address != match.Address) continue;
                var names = ReadUts(space, uts, delta) ?? ReadUts(space, uts + 4, delta);
                if (names is null) continue;
                return Build(space, delta, names, text, symbols, isX64 ? text - LinkAddress : null, isX64 ? text - delta - (16 << 20) : null, null);
            }
        }

        throw KernelData.Invalid("the kernel's symbols do not lead to its banner and its page table.");
    }

    private GuestKernel Build(GuestVirtualMemory space, ulong delta, string[] names, ulong text, Kallsyms? symbols, ulong? kaslr, ulong? physicalKaslr, string? info)
    {
        var found = symbols?.Find("_text", "linux_banner", "__start_BTF", "__stop_BTF") ?? [];
        return new GuestKernel(new KernelFacts
        {
            Space = space,
            Delta = delta,
            Release = names[2],
            Version = names[3],
            NodeName = names[1],
            Banner = FindBanner(names[2], names[3], text - delta, found, delta),
            Address = found.GetValueOrDefault("_text", text),
            KaslrOffset = kaslr,
            PhysicalKaslrOffset = physicalKaslr,
            Symbols = new Lazy<Kallsyms>(() => symbols ?? throw KernelData.Invalid($"The tables of the symbols of Linux {names[2]} were not found.")),
            SymbolCount = symbols?.Count ?? 0,
            Btf = FindBtf(text - delta, found, delta),
            VmcoreInfo = info,
        });
    }

    /// <summary>The six names of uname(2) by the kernel's virtual addresses; null where they are not there.</summary>
    private string[]? ReadUts(GuestVirtualMemory space, ulong address, ulong delta)
    {
        // The kernel's image is mapped in one piece; a table of another kernel leads elsewhere.
        if (space.Translate(address, cancellation).Address != address - delta) return null;
        var bytes = KernelData.Read(memory, address - delta, 6 * UtsField, "The names of the kernel", cancellation);
        var names = new string[6];
        for (var i = 0; i < names.Length; i++)
        {
            // The guest's administrators set the names of the host and its domain, to any bytes.
            if ((KernelData.Text(bytes.AsSpan(i * UtsField, UtsField)) ?? (i is 1 or 5 ? "" : null)) is not { } name) return null;
            names[i] = name;
        }

        return names[0] == "Linux" ? names : null;
    }

    /// <summary>The kernel's symbols: where VMCOREINFO says, or (before 6.0) where they look like them. Null where there are none, or wrong ones.</summary>
    private Kallsyms? FindSymbols(VmcoreInfo info, ulong text, ulong delta)
    {
        if (info.Symbol("kallsyms_names") is { } names && info.Symbol("kallsyms_num_syms") is { } count && info.Symbol("kallsyms_token_table") is { } table
            && info.Symbol("kallsyms_token_index") is { } index && info.Symbol("kallsyms_offsets") is { } offsets)
        {
            var place = new KallsymsPlaces(count - delta, names - delta, table - delta, index - delta, offsets - delta, info.Symbol("kallsyms_relative_base") - delta, delta);
            if (Read(place) is { } symbols) return symbols;
        }

        var digits = new MemorySearch(KallsymsFinder.Digits) { Context = 0 }.Find(memory, new GuestAddress(text - delta), KernelData.ImageReach, cancellation: cancellation);
        foreach (var place in KallsymsFinder.Find(memory, digits, cancellation))
        {
            if (Read(place with { Delta = delta }) is { } symbols) return symbols;
        }

        return null;

        Kallsyms? Read(KallsymsPlaces place)
        {
            try
            {
                var symbols = Kallsyms.Read(memory, place, cancellation);
                // What VMCOREINFO says itself tells whether the addresses are right.
                return symbols.Find("_stext").GetValueOrDefault("_stext") == text ? symbols : null;
            }
            catch (GuestMemoryException exception) when (exception.Error == GuestMemoryError.InvalidKernelData)
            {
                return null;
            }
        }
    }

    private string? FindBanner(string release, string version, ulong image, Dictionary<string, ulong> symbols, ulong delta)
    {
        if (symbols.TryGetValue("linux_banner", out var address) && Banner(address - delta) is { } banner) return banner;
        // The kernel has an older one, too, which was made before the number of the build.
        var search = new MemorySearch(MemoryPattern.FromText($"Linux version {release} ")) { Context = 0 };
        return search.Find(memory, new GuestAddress(image), KernelData.ImageReach, cancellation: cancellation).Take(MaxMatches).Select(match => Banner(match.Address))
            .FirstOrDefault(banner => banner?.EndsWith(version, StringComparison.Ordinal) == true);

        string? Banner(ulong at)
        {
            if (!memory.AddressInRange(new GuestAddress(at))) return null;
            var bytes = KernelData.ReadSome(memory, at, 1024, cancellation);
            var end = bytes.AsSpan().IndexOf((byte)'\n');
            if (end < 0) return null;
            bytes[end] = 0;
            return KernelData.Text(bytes);
        }
    }

    private (ulong Address, ulong Size)? FindBtf(ulong image, Dictionary<string, ulong> symbols, ulong delta)
    {
        if (symbols.TryGetValue("__start_BTF", out var start) && symbols.TryGetValue("__stop_BTF", out var stop) && Size(start - delta) is { } size && size <= stop - start) return (start - delta, size);
        // Programs of BPF bring their own, which are small.
        foreach (var match in new MemorySearch(BtfTypes.Begin) { Alignment = 4, Context = 0 }.Find(memory, new GuestAddress(image), KernelData.ImageReach, cancellation: cancellation).Take(MaxMatches))
        {
            if (Size(match.Address) is { } bytes and > 0x10000 && memory.CheckRange(new GuestAddress(match.Address), bytes)) return (match.Address, bytes);
        }

        return null;

        ulong? Size(ulong at) => memory.CheckRange(new GuestAddress(at), 24) && BtfTypes.SizeOf(KernelData.Read(memory, at, 24, "The kernel's BTF", cancellation)) is { } found ? (ulong)found : null;
    }
}
