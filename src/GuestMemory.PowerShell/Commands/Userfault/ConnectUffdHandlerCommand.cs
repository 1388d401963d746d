using System.Management.Automation;
using GuestMemory.Core;
using GuestMemory.Core.Userfault;
using GuestMemory.PowerShell.Binding;

namespace GuestMemory.PowerShell.Commands;

/// <summary>Connect-UffdHandler: the VMM's part of the hand-over.</summary>
[Cmdlet(VerbsCommunications.Connect, "UffdHandler", SupportsShouldProcess = true)]
[OutputType(typeof(GuestRegionMmap), typeof(UffdTouchResult))]
public sealed class ConnectUffdHandlerCommand : MemoryCmdlet
{
    private static readonly string[] s_touchOptions = [nameof(TouchCount), nameof(ThreadCount), nameof(Stride), nameof(Seed)];

    /// <summary>Where the handler listens.</summary>
    [Parameter(Mandatory = true, Position = 0, ValueFromPipelineByPropertyName = true)]
    [ArgumentCompleter(typeof(HandlerSocketCompleter))]
    [ValidateNotNullOrEmpty]
    public string SocketPath { get; set; } = "";

    /// <summary>Touches the pages in this order, and emits what that took.</summary>
    [Parameter]
    public UffdTouchPattern Touch { get; set; }

    /// <summary>How many pages are touched; all of them otherwise.</summary>
    [Parameter]
    [ValidateRange(1, long.MaxValue)]
    public long TouchCount { get; set; }

    /// <summary>How many threads touch.</summary>
    [Parameter]
    [ValidateRange(1, 256)]
    public int ThreadCount { get; set; } = 1;

    /// <summary>The pages from one touch to the next with -Touch Strided.</summary>
    [Parameter]
    [ValidateRange(1, int.MaxValue)]
    public int Stride { get; set; } = 16;

    /// <summary>Decides the order with -Touch Random.</summary>
    [Parameter]
    public int Seed { get; set; } = 1;

    /// <summary>Ranges of guest memory that are given back after the touches, as a balloon does.</summary>
    [Parameter]
    [Range]
    public AddressRange[] RemoveRange { get; set; } = [];

    /// <summary>Hands the memfd that is the memory over too, as e2b's fork of Firecracker does.</summary>
    [Parameter]
    public SwitchParameter ShareMemory { get; set; }

    /// <summary>Emits the connected regions.</summary>
    [Parameter]
    public SwitchParameter PassThru { get; set; }

    /// <inheritdoc/>
    protected override void Process(GuestMemoryMmap memory)
    {
        ArgumentNullException.ThrowIfNull(memory);
        RequireTouch();
        var path = ResolvePath(SocketPath);
        if (!ShouldProcess(path, $"Hand over {memory.Regions.Count} region(s), {Formatting.Size(memory.Size)}")) return;
        foreach (var range in RemoveRange) memory.RequireRange(new GuestAddress(range.Address), range.Size);
        UffdRegistration.Connect(path, memory, ShareMemory, StopToken);
        if (MyInvocation.BoundParameters.ContainsKey(nameof(Touch)))
        {
            var options = new UffdTouchOptions { Pattern = Touch, Count = TouchCount, ThreadCount = ThreadCount, Stride = Stride, Seed = Seed };
            WriteObject(UffdTouch.Run(memory, options, StopToken));
        }

        foreach (var range in RemoveRange) memory.Discard(new GuestAddress(range.Address), range.Size, StopToken);
        if (PassThru) WriteObject(memory.Regions, enumerateCollection: true);
    }

    private void RequireTouch()
    {
        var bound = MyInvocation.BoundParameters;
        if (bound.ContainsKey(nameof(Touch))) return;
        if (s_touchOptions.FirstOrDefault(bound.ContainsKey) is { } option)
            throw new GuestMemoryException(GuestMemoryError.ValueNotSupported, $"-{option} says how pages are touched: add -Touch Sequential, Random or Strided.");
    }
}
