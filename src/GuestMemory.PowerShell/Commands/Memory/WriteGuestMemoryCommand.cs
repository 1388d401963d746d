using System.Management.Automation;
using System.Text;
using GuestMemory.Core;
using GuestMemory.Core.Images;
using GuestMemory.PowerShell.Binding;

namespace GuestMemory.PowerShell.Commands;

/// <summary>Write-GuestMemory: bytes, values, text or a file to guest physical addresses.</summary>
[Cmdlet(VerbsCommunications.Write, "GuestMemory", SupportsShouldProcess = true, DefaultParameterSetName = Values)]
[OutputType(typeof(GuestMemoryMmap))]
public sealed class WriteGuestMemoryCommand : MemoryCmdlet
{
    private const string Values = "Value";
    private const string ByteSet = "Bytes";
    private const string FromFile = "File";
    private const int Piece = 1 << 20;

    /// <summary>The guest physical address to start at.</summary>
    [Parameter(Mandatory = true, Position = 0)]
    [Alias("GuestAddress")]
    [Number]
    public ulong Address { get; set; }

    /// <summary>Numbers or text, one behind the other.</summary>
    [Parameter(Mandatory = true, Position = 1, ParameterSetName = Values)]
    [Literal]
    public object[] Value { get; set; } = [];

    /// <summary>The type that the numbers are written as.</summary>
    [Parameter(ParameterSetName = Values)]
    public MemoryValueType? As { get; set; }

    /// <summary>The byte order of the numbers.</summary>
    [Parameter(ParameterSetName = Values)]
    public Endianness Endian { get; set; }

    /// <summary>The encoding that text is written in.</summary>
    [Parameter(ParameterSetName = Values)]
    [ArgumentCompleter(typeof(EncodingCompleter))]
    [EncodingName]
    public Encoding Encoding { get; set; } = new UTF8Encoding(encoderShouldEmitUTF8Identifier: false);

    /// <summary>The bytes.</summary>
    [Parameter(Mandatory = true, ParameterSetName = ByteSet)]
    public byte[] Bytes { get; set; } = [];

    /// <summary>A file whose bytes are written.</summary>
    [Parameter(Mandatory = true, ParameterSetName = FromFile)]
    [ValidateNotNullOrEmpty]
    public string? InFile { get; set; }

    /// <inheritdoc/>
    [Parameter(Mandatory = true, ValueFromPipeline = true)]
    [ArgumentCompleter(typeof(RegionCompleter))]
    [Memory(Backends = true)]
    [ValidateNotNull]
    public override IGuestMemorySource[] Memory { get; set; } = [];

    /// <summary>Emits the memory that was written to.</summary>
    [Parameter]
    public SwitchParameter PassThru { get; set; }

    /// <inheritdoc/>
    protected override void Process(GuestMemoryMmap memory)
    {
        ArgumentNullException.ThrowIfNull(memory);
        if (ParameterSetName == FromFile)
        {
            WriteFile(memory, ResolvePath(InFile!));
        }
        else
        {
            var bytes = ParameterSetName == ByteSet ? Bytes : MemoryValues.Encode(Value, As, Endian, Encoding);
            // Checked as a whole first: a write that cannot be done changes nothing.
            memory.RequireRange(new GuestAddress(Address), (ulong)bytes.Length, MemoryProtection.Write);
            if (!ShouldProcess($"{bytes.Length} bytes at guest address {Formatting.Hex(Address)}", "Write")) return;
            memory.WriteExact(new GuestAddress(Address), bytes, StopToken);
        }

        if (PassThru) WriteObject(memory);
    }

    private void WriteFile(GuestMemoryMmap memory, string path)
    {
        // To open a pipe waits for its writer, and a device has no length.
        RawImage.RequireFile(path);
        using var file = new FileStream(path, FileMode.Open, FileAccess.Read, FileShare.ReadWrite, bufferSize: 0);
        var size = (ulong)file.Length;
        memory.RequireRange(new GuestAddress(Address), size, MemoryProtection.Write);
        if (!ShouldProcess($"{Formatting.Size(size)} at guest address {Formatting.Hex(Address)}", $"Write {path}")) return;
        var progress = new ProgressBar(this, $"Writing {path} to guest memory", size);
        var buffer = new byte[(int)Math.Min(Piece, Math.Max(1, size))];
        for (ulong done = 0; done < size;)
        {
            StopToken.ThrowIfCancellationRequested();
            var count = file.Read(buffer, 0, (int)Math.Min((ulong)buffer.Length, size - done));
            if (count == 0) break;
            memory.WriteExact(new GuestAddress(Address + done), buffer.AsMemory(0, count), StopToken);
            done += (ulong)count;
            progress.Report(done);
        }

        progress.Complete();
    }
}
