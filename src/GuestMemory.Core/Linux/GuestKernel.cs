using GuestMemory.Core.Paging;

namespace GuestMemory.Core.Linux;

/// <summary>
/// The Linux kernel of a guest, as its memory shows it: no file of symbols is needed. It owns nothing; the regions stay their owners', and it
/// reads from them what it is asked for.
/// </summary>
public sealed class GuestKernel : IVirtualMemorySource
{
    private readonly Lazy<Kallsyms> _symbols;
    private readonly GuestMemoryMmap _memory;

    internal GuestKernel(KernelFacts facts)
    {
        _memory = facts.Space.Memory;
        _symbols = facts.Symbols;
        Space = facts.Space;
        Delta = facts.Delta;
        Release = facts.Release;
        Version = facts.Version;
        NodeName = facts.NodeName;
        Banner = facts.Banner;
        Address = facts.Address;
        PhysicalAddress = facts.Address - facts.Delta;
        KaslrOffset = facts.KaslrOffset;
        PhysicalKaslrOffset = facts.PhysicalKaslrOffset;
        SymbolCount = facts.SymbolCount;
        BtfAddress = facts.Btf?.Address;
        BtfSize = facts.Btf?.Size;
        VmcoreInfo = facts.VmcoreInfo;
    }

    /// <summary>The release, as of uname -r.</summary>
    public string Release { get; }

    /// <summary>The version, as of uname -v.</summary>
    public string Version { get; }

    /// <summary>The host name of the guest.</summary>
    public string NodeName { get; }

    /// <summary>The line that the kernel begins its log with: "Linux version ...". Null where it was not found.</summary>
    public string? Banner { get; }

    /// <summary>The architecture.</summary>
    public GuestArchitecture Architecture => Space.Format.Architecture;

    /// <summary>The virtual address at which the kernel's code begins (_text).</summary>
    public ulong Address { get; }

    /// <summary>The guest physical address at which it begins.</summary>
    public ulong PhysicalAddress { get; }

    /// <summary>How many bytes the kernel's virtual addresses are moved by KASLR; 0 without. Null where it is not known.</summary>
    public ulong? KaslrOffset { get; }

    /// <summary>How many bytes its physical addresses are moved, on x86-64, where that is another number. Null where it is not known.</summary>
    public ulong? PhysicalKaslrOffset { get; }

    /// <summary>The guest physical address of the kernel's own page table (swapper_pg_dir).</summary>
    public ulong PageTable => Space.PageTable;

    /// <summary>How many levels the guest's page tables have.</summary>
    public int Levels => Space.Format.Levels;

    /// <summary>The bytes of the guest's smallest page.</summary>
    public ulong PageSize => Space.Format.PageSize;

    /// <summary>How many symbols the kernel has; 0 where its tables of them were not found.</summary>
    public int SymbolCount { get; }

    /// <summary>The guest physical address of the kernel's BTF, its types; null where it has none.</summary>
    public ulong? BtfAddress { get; }

    /// <summary>The bytes of the BTF.</summary>
    public ulong? BtfSize { get; }

    /// <summary>What the kernel says of itself for dumps (VMCOREINFO): lines KEY=VALUE. Null where it does not.</summary>
    public string? VmcoreInfo { get; }

    internal GuestVirtualMemory Space { get; }

    /// <summary>A virtual address of the kernel's image less the guest physical one.</summary>
    internal ulong Delta { get; }

    /// <summary>Finds the Linux kernel in a guest's memory. Where the memory has several (after a restart), on x86-64 the one that started the processors last, and else the first whose page table leads to it.</summary>
    /// <param name="memory">The memory, at the guest's physical addresses. The guest may run.</param>
    /// <param name="progress">Told the bytes that were searched, by the caller's thread.</param>
    /// <param name="cancellation">Ends the search.</param>
    /// <exception cref="GuestMemoryException">KernelNotFound: there is none that can be read, and why. As for a read.</exception>
    /// <exception cref="OperationCanceledException">The token was cancelled.</exception>
    public static GuestKernel Find(GuestMemoryMmap memory, Action<ulong>? progress = null, CancellationToken cancellation = default)
    {
        ArgumentNullException.ThrowIfNull(memory);
        return new KernelFinder(memory, cancellation).Find(progress);
    }

    /// <summary>A symbol by its exact name, or null. Where several have the name, the one with the lowest address.</summary>
    /// <exception cref="GuestMemoryException">InvalidKernelData: the tables of the symbols were not found, or contradict themselves.</exception>
    public GuestSymbol? FindSymbol(string name) => GetSymbols().FirstOrDefault(symbol => symbol.Name == name);

    /// <summary>All symbols of the kernel, without those of its modules.</summary>
    /// <exception cref="GuestMemoryException">InvalidKernelData: the tables of the symbols were not found, or contradict themselves.</exception>
    public IEnumerable<GuestSymbol> GetSymbols() => _symbols.Value.All();

    /// <summary>Looks a virtual address up in the kernel's page table.</summary>
    /// <exception cref="GuestMemoryException">As <see cref="GuestVirtualMemory.Translate"/>.</exception>
    public PageTranslation Translate(ulong virtualAddress) => Space.Translate(virtualAddress);

    /// <summary>The memory by the kernel's page table, whatever the address.</summary>
    public GuestVirtualMemory GetVirtualMemory(ulong virtualAddress) => Space;

    /// <summary>Lists the guest's processes and the threads of its kernel, as its memory has them.</summary>
    /// <param name="warning">Told why the list may not be complete: where the guest runs, it changes while it is read.</param>
    /// <param name="cancellation">Ends it.</param>
    /// <exception cref="GuestMemoryException">
    /// KernelTypesNotFound: the kernel has no BTF, so that the places of the fields are not known; InvalidKernelData: what it has contradicts itself.
    /// </exception>
    public IEnumerable<GuestProcess> GetProcesses(Action<string>? warning = null, CancellationToken cancellation = default) => new TaskList(this, cancellation).All(warning);

    /// <inheritdoc/>
    public IReadOnlyList<GuestMemoryRegion> GetRegions() => _memory.Regions;

    /// <summary>The release, for debuggers and messages.</summary>
    public override string ToString() => $"Linux {Release}";

    /// <summary>The addresses of symbols, those that there are; none where the tables were not found.</summary>
    internal Dictionary<string, ulong> FindSymbols(params ReadOnlySpan<string> names) => SymbolCount == 0 ? [] : _symbols.Value.Find(names);
}
