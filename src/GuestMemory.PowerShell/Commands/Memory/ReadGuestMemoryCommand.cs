using System.Management.Automation;
using System.Text;
using GuestMemory.Core;
using GuestMemory.Core.Images;
using GuestMemory.Core.Paging;
using GuestMemory.PowerShell.Binding;

namespace GuestMemory.PowerShell.Commands;

/// <summary>Read-GuestMemory: bytes, values or text from guest physical or virtual addresses.</summary>
[Cmdlet(VerbsCommunications.Read, "GuestMemory", DefaultParameterSetName = Block)]
[OutputType(typeof(MemoryBlock), ParameterSetName = [Block])]
[OutputType(typeof(byte[]), ParameterSetName = [Bytes])]
[OutputType(typeof(ulong), typeof(long), typeof(uint), typeof(int), typeof(ushort), typeof(short), typeof(byte), typeof(sbyte), typeof(Int128), typeof(UInt128), typeof(Half), typeof(float), typeof(double), ParameterSetName = [Values])]
[OutputType(typeof(string), ParameterSetName = [Text])]
[OutputType(typeof(FileInfo), ParameterSetName = [ToFile])]
public sealed class ReadGuestMemoryCommand : VmMemoryCmdlet
{
    private const string Block = "Block";
    private const string Bytes = "Raw";
    private const string Values = "Values";
    private const string Text = "Text";
    private const string ToFile = "File";

    private IVirtualMemorySource? _source;

    /// <summary>The guest physical address to start at, or the virtual one.</summary>
    [Parameter(Mandatory = true, Position = 0)]
    [Alias("GuestAddress")]
    [Number]
    public ulong Address { get; set; }

    /// <summary>How many bytes to read.</summary>
    [Parameter(Position = 1, ParameterSetName = Block)]
    [Parameter(Position = 1, ParameterSetName = Bytes)]
    [Parameter(Position = 1, ParameterSetName = Text)]
    [Parameter(Position = 1, ParameterSetName = ToFile)]
    [Alias("Length")]
    [Number]
    public ulong Size { get; set; } = 256;

    /// <summary>Gives one byte array.</summary>
    [Parameter(Mandatory = true, ParameterSetName = Bytes)]
    public SwitchParameter Raw { get; set; }

    /// <summary>Writes the bytes to a file.</summary>
    [Parameter(Mandatory = true, ParameterSetName = ToFile)]
    [ValidateNotNullOrEmpty]
    public string? OutFile { get; set; }

    /// <summary>Replaces the file.</summary>
    [Parameter(ParameterSetName = ToFile)]
    public SwitchParameter Force { get; set; }

    /// <summary>Emits the file that was written.</summary>
    [Parameter(ParameterSetName = ToFile)]
    public SwitchParameter PassThru { get; set; }

    /// <summary>The type of the values to read.</summary>
    [Parameter(Mandatory = true, ParameterSetName = Values)]
    public MemoryValueType As { get; set; }

    /// <summary>How many values to read.</summary>
    [Parameter(ParameterSetName = Values)]
    [Number]
    public ulong Count { get; set; } = 1;

    /// <summary>The byte order of the values.</summary>
    [Parameter(ParameterSetName = Values)]
    public Endianness Endian { get; set; }

    /// <summary>Reads text in this encoding, up to the first NUL.</summary>
    [Parameter(Mandatory = true, ParameterSetName = Text)]
    [ArgumentCompleter(typeof(EncodingCompleter))]
    [EncodingName]
    public Encoding? Encoding { get; set; }

    /// <summary>Takes the address for a virtual one.</summary>
    [Parameter]
    public SwitchParameter Virtual { get; set; }

    /// <summary>The guest physical address of the page table, or the register that holds it.</summary>
    [Parameter]
    [Alias("Cr3", "Ttbr")]
    [Number]
    public ulong PageTable { get; set; }

    /// <summary>The architecture of the guest.</summary>
    [Parameter]
    public GuestArchitecture Architecture { get; set; }

    /// <summary>How many levels the page tables have.</summary>
    [Parameter]
    [ValidateSet("3", "4", "5")]
    public int Levels { get; set; }

    private protected override void ProcessOther(IGuestMemorySource source)
    {
        _source = source as IVirtualMemorySource;
        try
        {
            base.ProcessOther(source);
        }
        finally
        {
            _source = null;
        }
    }

    /// <inheritdoc/>
    protected override void Process(GuestMemoryMmap memory)
    {
        ArgumentNullException.ThrowIfNull(memory);
        if (!Virtual && VirtualOnly.FirstOrDefault(MyInvocation.BoundParameters.ContainsKey) is { } name)
            throw new GuestMemoryException(GuestMemoryError.ValueNotSupported, $"-{name} is for virtual addresses; give -Virtual with it.");
        switch (ParameterSetName)
        {
            case Bytes:
                WriteObject(ReadBytes(memory, Size), enumerateCollection: false);
                break;
            case Values:
                var size = (ulong)MemoryValues.SizeOf(As);
                if (Count > ulong.MaxValue / size) throw new GuestMemoryException(GuestMemoryError.GuestAddressOverflow, $"{Count} values of {size} bytes pass the last address, 2^64 - 1.");
                var bytes = ReadBytes(memory, Count * size);
                foreach (var value in MemoryValues.Decode(bytes, As, Endian)) WriteObject(value);
                break;
            case Text:
                var text = Encoding!.GetString(ReadBytes(memory, Size));
                var end = text.IndexOf('\0', StringComparison.Ordinal);
                WriteObject(end < 0 ? text : text[..end]);
                break;
            case ToFile:
                Save(memory);
                break;
            default:
                WriteObject(new MemoryBlock(Address, ReadBytes(memory, Size)));
                break;
        }
    }

    private static string[] VirtualOnly { get; } = [nameof(PageTable), nameof(Architecture), nameof(Levels)];

    private byte[] ReadBytes(GuestMemoryMmap memory, ulong size)
    {
        var space = Virtual ? FindSpace(memory) : null;
        // A size beyond what is mapped is found out before anything of that size is allocated; by a page table, which may map a page any number of times, that takes as long as the size.
        if (space is null) memory.RequireRange(new GuestAddress(Address), size);
        if (size > (ulong)Array.MaxLength)
            throw new GuestMemoryException(GuestMemoryError.ValueNotSupported, $"{Formatting.Size(size)} do not fit in one array; read them with -OutFile, or piece by piece.");
        space?.RequireRange(Address, size, StopToken);
        var bytes = GC.AllocateUninitializedArray<byte>((int)size);
        if (space is null) memory.ReadExact(new GuestAddress(Address), bytes, StopToken);
        else space.ReadExact(Address, bytes, StopToken);
        return bytes;
    }

    /// <summary>The address space that the parameters say, or the kernel or process that was piped.</summary>
    private GuestVirtualMemory FindSpace(GuestMemoryMmap memory)
    {
        if (!MyInvocation.BoundParameters.ContainsKey(nameof(PageTable)))
        {
            return _source?.GetVirtualMemory(Address) ?? throw new GuestMemoryException(GuestMemoryError.ValueNotSupported,
                "A virtual address needs a page table: give its guest physical address with -PageTable (CR3, or TTBR0 or TTBR1), or pipe what Get-GuestKernel or Get-GuestProcess emits.");
        }

        // What is piped knows its architecture.
        if (_source is not null && !MyInvocation.BoundParameters.ContainsKey(nameof(Levels)) && !MyInvocation.BoundParameters.ContainsKey(nameof(Architecture)))
            return new GuestVirtualMemory(memory, PageTable, _source.GetVirtualMemory(ulong.MaxValue).Format);
        if (!MyInvocation.BoundParameters.ContainsKey(nameof(Levels))) return GuestVirtualMemory.Detect(memory, PageTable, Architecture, Address, StopToken);
        return new GuestVirtualMemory(memory, PageTable, (Architecture, Levels) switch
        {
            (GuestArchitecture.X64, 4 or 5) => PageTableFormat.X64(Levels),
            (GuestArchitecture.Arm64, 3) => PageTableFormat.Arm64(39),
            (GuestArchitecture.Arm64, 4) => PageTableFormat.Arm64(48),
            (GuestArchitecture.Arm64, 5) => PageTableFormat.Arm64(52),
            _ => throw new GuestMemoryException(GuestMemoryError.ValueNotSupported, $"Page tables of x86-64 have 4 or 5 levels, not {Levels}."),
        });
    }

    private void Save(GuestMemoryMmap memory)
    {
        var path = ResolvePath(OutFile!);
        var progress = new ProgressBar(this, $"Reading guest memory to {path}", Size);
        if (Virtual) FindSpace(memory).WriteRange(Address, Size, path, Force, progress.Report, StopToken);
        else RawImage.WriteRange(memory, new GuestAddress(Address), Size, path, Force, progress.Report, StopToken);
        progress.Complete();
        if (PassThru) WriteObject(InvokeProvider.Item.Get([path], force: true, literalPath: true), enumerateCollection: true);
    }
}
