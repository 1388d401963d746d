using System.Management.Automation;
using System.Runtime.InteropServices;
using GuestMemory.Core;
using GuestMemory.Core.VhostUser;
using GuestMemory.PowerShell.Binding;

namespace GuestMemory.PowerShell.Commands;

/// <summary>Start-VhostUserBackend: provides a raw image as a disk to the VM of another process.</summary>
[Cmdlet(VerbsLifecycle.Start, "VhostUserBackend", SupportsShouldProcess = true)]
[OutputType(typeof(VhostUserDisk))]
public sealed class StartVhostUserBackendCommand : GuestMemoryCmdlet
{
    private static readonly TimeSpan s_pause = TimeSpan.FromMilliseconds(250);

    /// <summary>Where the back end listens.</summary>
    [Parameter(Mandatory = true, Position = 0)]
    [ValidateNotNullOrEmpty]
    public string SocketPath { get; set; } = "";

    /// <summary>The raw image.</summary>
    [Parameter(Mandatory = true, Position = 1, ValueFromPipelineByPropertyName = true)]
    [Alias("Path", "PSPath")]
    [ValidateNotNullOrEmpty]
    public string ImagePath { get; set; } = "";

    /// <summary>The name of the back end.</summary>
    [Parameter]
    [ValidateNotNullOrEmpty]
    public string? Name { get; set; }

    /// <summary>Has the guest not change the disk.</summary>
    [Parameter]
    public SwitchParameter ReadOnly { get; set; }

    /// <summary>How many virtqueues a front end may use.</summary>
    [Parameter]
    [ValidateRange(1, 256)]
    public int QueueCount { get; set; } = 16;

    /// <summary>Further users whose front ends may connect.</summary>
    [Parameter]
    [ArgumentCompleter(typeof(UserCompleter))]
    [ValidateNotNullOrEmpty]
    public string[] AllowUser { get; set; } = [];

    /// <summary>Accepts memory that the front end could shorten.</summary>
    [Parameter]
    public SwitchParameter TrustFrontEnd { get; set; }

    /// <summary>Waits until the back end is stopped; Ctrl+C stops it.</summary>
    [Parameter]
    public SwitchParameter Wait { get; set; }

    /// <summary>Also listens where every user may replace the socket.</summary>
    [Parameter]
    public SwitchParameter Force { get; set; }

    /// <inheritdoc/>
    protected override void ProcessRecord() => Attempt(Start, ImagePath);

    private void Start()
    {
        var (socket, image) = (ResolvePath(SocketPath), ResolvePath(ImagePath));
        if (Name is not null && Session.HasBackend(Name)) throw NameInUse(Name);
        if (!ShouldProcess(image, $"Provide as a{(ReadOnly ? " read-only" : "")} disk at {socket}")) return;
        var backend = VhostUserDisk.Start(new VhostUserDiskOptions
        {
            Name = Name ?? Session.NextBackendName(socket),
            SocketPath = socket,
            ImagePath = image,
            IsReadOnly = ReadOnly,
            QueueCount = QueueCount,
            AllowUser = AllowUser,
            TrustFrontEnd = TrustFrontEnd,
            Force = Force,
        });
        if (!Session.TryAdd(backend))
        {
            backend.Dispose();
            throw NameInUse(backend.Name);
        }

        if (Wait) Follow(backend);
        WriteObject(backend);
    }

    private void Follow(VhostUserDisk backend)
    {
        // SIGTERM of a service manager ends the wait; the back end removes its socket.
        using var terminate = PosixSignalRegistration.Create(PosixSignal.SIGTERM, context =>
        {
            context.Cancel = true;
            backend.Dispose();
        });
        try
        {
            while (backend.State != VhostUserDiskState.Stopped && !StopToken.WaitHandle.WaitOne(s_pause)) Show(backend);
        }
        finally
        {
            backend.Dispose();
            Session.Remove(backend);
        }

        StopToken.ThrowIfCancellationRequested();
    }

    private void Show(VhostUserDisk backend) => WriteProgress(new ProgressRecord(4, $"Providing {backend.ImagePath} as a disk at {backend.SocketPath}",
        backend.ProcessId is { } process ? $"process {process} is connected, its VM has {Formatting.Size(backend.MemorySize)}{(backend.IsPostcopy ? ", which arrives by post-copy" : backend.IsLogging ? ", which its log tracks" : "")}" : "no VM is connected"));

    private static GuestMemoryException NameInUse(string name) =>
        new(GuestMemoryError.NameInUse, $"There is a back end '{name}' already. Give another -Name, or stop that one: 'Stop-VhostUserBackend -Name {name}'.");
}
