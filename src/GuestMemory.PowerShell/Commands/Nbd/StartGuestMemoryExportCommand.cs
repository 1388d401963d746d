using System.Management.Automation;
using System.Runtime.InteropServices;
using GuestMemory.Core;
using GuestMemory.Core.Nbd;
using GuestMemory.PowerShell.Binding;

namespace GuestMemory.PowerShell.Commands;

/// <summary>Start-GuestMemoryExport: serves memory to other programs, as a read-only network block device.</summary>
[Cmdlet(VerbsLifecycle.Start, "GuestMemoryExport", SupportsShouldProcess = true, DefaultParameterSetName = SocketSet)]
[OutputType(typeof(MemoryExport))]
public sealed class StartGuestMemoryExportCommand : MemoryCmdlet
{
    private const string SocketSet = "Socket";
    private const string PortSet = "Port";
    private static readonly TimeSpan s_pause = TimeSpan.FromMilliseconds(250);

    /// <inheritdoc/>
    [Parameter(Mandatory = true, ValueFromPipeline = true)]
    [ArgumentCompleter(typeof(RegionCompleter))]
    [Memory(Backends = true)]
    [ValidateNotNull]
    public override IGuestMemorySource[] Memory { get; set; } = [];

    /// <summary>The Unix socket to listen at.</summary>
    [Parameter(Mandatory = true, Position = 0, ParameterSetName = SocketSet)]
    [ValidateNotNullOrEmpty]
    public string SocketPath { get; set; } = "";

    /// <summary>The port of 127.0.0.1 to listen at; 0 for one that is free.</summary>
    [Parameter(Mandatory = true, ParameterSetName = PortSet)]
    [ValidateRange(0, 65535)]
    public int Port { get; set; }

    /// <summary>The name of the export.</summary>
    [Parameter]
    [ValidateNotNullOrEmpty]
    public string? Name { get; set; }

    /// <summary>Lays the regions one behind the other, as in a raw image.</summary>
    [Parameter]
    public SwitchParameter Packed { get; set; }

    /// <summary>Further users whose clients may connect.</summary>
    [Parameter]
    [ArgumentCompleter(typeof(UserCompleter))]
    [ValidateNotNullOrEmpty]
    public string[] AllowUser { get; set; } = [];

    /// <summary>Waits until the export is stopped; Ctrl+C stops it.</summary>
    [Parameter]
    public SwitchParameter Wait { get; set; }

    /// <summary>Also listens where every user may replace the socket.</summary>
    [Parameter(ParameterSetName = SocketSet)]
    public SwitchParameter Force { get; set; }

    // The export holds the process while a client is connected.
    private protected override bool HoldsProcesses => false;

    /// <inheritdoc/>
    protected override void Process(GuestMemoryMmap memory)
    {
        ArgumentNullException.ThrowIfNull(memory);
        var socket = ParameterSetName == SocketSet ? ResolvePath(SocketPath) : null;
        if (Name is not null && Session.HasExport(Name)) throw NameInUse(Name);
        if (!ShouldProcess(memory.ToString(), $"Export read-only at {socket ?? $"port {Port} of 127.0.0.1"}")) return;
        var export = MemoryExport.Start(memory, new MemoryExportOptions
        {
            Name = Name ?? Session.NextExportName(socket),
            SocketPath = socket,
            Port = Port,
            IsPacked = Packed,
            AllowUser = AllowUser,
            Force = Force,
        });
        if (!Session.TryAdd(export))
        {
            export.Dispose();
            throw NameInUse(export.Name);
        }

        if (Wait) Follow(export);
        WriteObject(export);
    }

    private void Follow(MemoryExport export)
    {
        // SIGTERM of a service manager ends the wait; the export removes its socket.
        using var terminate = PosixSignalRegistration.Create(PosixSignal.SIGTERM, context =>
        {
            context.Cancel = true;
            export.Dispose();
        });
        try
        {
            while (export.State != MemoryExportState.Stopped && !StopToken.WaitHandle.WaitOne(s_pause))
            {
                WriteProgress(new ProgressRecord(5, $"Exporting {Formatting.Size(export.MemorySize)} of memory at {export.Uri}", $"{export.ConnectionCount} clients, {Formatting.Size((ulong)export.ByteCount)} sent"));
            }
        }
        finally
        {
            export.Dispose();
            Session.Remove(export);
        }

        StopToken.ThrowIfCancellationRequested();
    }

    private static GuestMemoryException NameInUse(string name) =>
        new(GuestMemoryError.NameInUse, $"There is an export '{name}' already. Give another -Name, or stop that one: 'Stop-GuestMemoryExport -Name {name}'.");
}
