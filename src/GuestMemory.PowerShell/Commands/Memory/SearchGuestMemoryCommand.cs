using System.Management.Automation;
using System.Text;
using GuestMemory.Core;
using GuestMemory.PowerShell.Binding;

namespace GuestMemory.PowerShell.Commands;

/// <summary>Search-GuestMemory: where bytes, text or matches of a regular expression are in a guest's memory.</summary>
[Cmdlet(VerbsCommon.Search, "GuestMemory", DefaultParameterSetName = Bytes)]
[OutputType(typeof(MemoryMatch))]
public sealed class SearchGuestMemoryCommand : VmMemoryCmdlet
{
    private const string Bytes = "Pattern";
    private const string Texts = "Text";
    private const string Expression = "Regex";

    /// <summary>Bytes in hexadecimal, with question marks for what may be anything, or numbers.</summary>
    [Parameter(Mandatory = true, Position = 0, ParameterSetName = Bytes)]
    [MemoryPattern]
    [ValidateNotNullOrEmpty]
    public MemoryPattern[] Pattern { get; set; } = [];

    /// <summary>Text.</summary>
    [Parameter(Mandatory = true, ParameterSetName = Texts)]
    [ValidateNotNullOrEmpty]
    public string[] Text { get; set; } = [];

    /// <summary>The encodings that the text may be in.</summary>
    [Parameter(ParameterSetName = Texts)]
    [ArgumentCompleter(typeof(EncodingCompleter))]
    [EncodingName]
    [ValidateNotNullOrEmpty]
    public Encoding[] Encoding { get; set; } = [new UTF8Encoding(encoderShouldEmitUTF8Identifier: false)];

    /// <summary>A regular expression over bytes.</summary>
    [Parameter(Mandatory = true, ParameterSetName = Expression)]
    [ValidateNotNullOrEmpty]
    public string[] Regex { get; set; } = [];

    /// <summary>Takes letters of either case.</summary>
    [Parameter(ParameterSetName = Texts)]
    [Parameter(ParameterSetName = Expression)]
    public SwitchParameter IgnoreCase { get; set; }

    /// <summary>The guest physical address to begin at.</summary>
    [Parameter]
    [Alias("GuestAddress")]
    [Number]
    public ulong Address { get; set; }

    /// <summary>How many bytes to search.</summary>
    [Parameter]
    [Alias("Length")]
    [Number]
    public ulong Size { get; set; } = ulong.MaxValue;

    /// <summary>Matches begin at multiples of this.</summary>
    [Parameter]
    [Number]
    [ValidateRange(1ul, ulong.MaxValue)]
    public ulong Alignment { get; set; } = 1;

    /// <summary>How many bytes around a match to give with it.</summary>
    [Parameter]
    [ValidateRange(0, 65536)]
    public int Context { get; set; } = 16;

    /// <summary>Gives every match, not the first alone.</summary>
    [Parameter]
    public SwitchParameter All { get; set; }

    /// <inheritdoc/>
    protected override void Process(GuestMemoryMmap memory)
    {
        ArgumentNullException.ThrowIfNull(memory);
        var patterns = ParameterSetName switch
        {
            Texts => [.. Text.SelectMany(text => Encoding.Select(encoding => MemoryPattern.FromText(text, encoding, IgnoreCase)))],
            Expression => [.. Regex.Select(expression => MemoryPattern.FromRegex(expression, IgnoreCase))],
            _ => Pattern,
        };
        var search = new MemorySearch(patterns) { Alignment = Alignment, Context = Context };
        var bound = MyInvocation.BoundParameters;
        var part = bound.ContainsKey(nameof(Address)) || bound.ContainsKey(nameof(Size));
        var progress = new ProgressBar(this, "Searching guest memory", part ? Math.Min(Size, memory.Size) : memory.Size);
        try
        {
            var matches = part ? search.Find(memory, new GuestAddress(Address), Size, progress.Report, StopToken) : search.Find(memory, progress.Report, StopToken);
            foreach (var match in matches)
            {
                WriteObject(match);
                if (!All) break;
            }
        }
        finally
        {
            progress.Complete();
        }
    }
}
