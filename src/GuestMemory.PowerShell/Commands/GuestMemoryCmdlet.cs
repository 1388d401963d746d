using System.Management.Automation;
using GuestMemory.Core;
using GuestMemory.Core.Interop;

namespace GuestMemory.PowerShell.Commands;

/// <summary>The base of every cmdlet: errors with stable ids, paths of the session, and a token that Ctrl+C cancels.</summary>
public abstract class GuestMemoryCmdlet : PSCmdlet, IDisposable
{
    private readonly CancellationTokenSource _stop = new();

    /// <summary>Cancelled by Ctrl+C.</summary>
    protected CancellationToken StopToken => _stop.Token;

    /// <inheritdoc/>
    public void Dispose()
    {
        Dispose(disposing: true);
        GC.SuppressFinalize(this);
    }

    /// <summary>Frees what the cmdlet holds; also called when the pipeline was stopped.</summary>
    protected virtual void Dispose(bool disposing)
    {
        if (disposing) _stop.Dispose();
    }

    /// <inheritdoc/>
    protected override void StopProcessing() => _stop.Cancel();

    /// <summary>A path of the session as a full path of the file system. It may be relative to the location of the session, which is not .NET's current directory.</summary>
    protected string ResolvePath(string path)
    {
        var resolved = SessionState.Path.GetUnresolvedProviderPathFromPSPath(path, out var provider, out _);
        return provider.Name == "FileSystem"
            ? resolved
            : throw new GuestMemoryException(GuestMemoryError.NotAFilePath, $"{path} is a path of the provider {provider.Name}; a path of the file system is needed.");
    }

    /// <summary>Runs one piece of work. A failure becomes an error record, and the cmdlet continues with the next piece; returns whether it succeeded.</summary>
    protected bool Attempt(Action work, object? target)
    {
        ArgumentNullException.ThrowIfNull(work);
        try
        {
            work();
            return true;
        }
        catch (OperationCanceledException) when (StopToken.IsCancellationRequested)
        {
            throw new PipelineStoppedException();
        }
        catch (Exception exception) when (ToRecord(exception, target) is { } record)
        {
            WriteError(record);
        }

        return false;
    }

    /// <summary>Writes an error of the library: its kind is the error id, and what to type about it the recommended action.</summary>
    protected void WriteError(GuestMemoryException exception, object? target) => WriteError(ToRecord(exception, target)!);

    /// <summary>The error record of a failure; null where it is none that a cmdlet answers.</summary>
    private protected ErrorRecord? ToRecord(Exception exception, object? target)
    {
        switch (exception)
        {
            case GuestMemoryException failure:
                var record = new ErrorRecord(failure, failure.Error.ToString(), Category(failure), target);
                if (Advice.For(failure, MyInvocation, target) is { } advice) record.ErrorDetails = new ErrorDetails(failure.Message) { RecommendedAction = advice };
                return record;
            case FileNotFoundException or DirectoryNotFoundException:
                return new ErrorRecord(exception, "FileNotFound", ErrorCategory.ObjectNotFound, target);
            case IOException:
                return new ErrorRecord(exception, "FileError", ErrorCategory.WriteError, target);
            case UnauthorizedAccessException:
                return new ErrorRecord(exception, "FileAccessDenied", ErrorCategory.PermissionDenied, target);
            default:
                return null;
        }
    }

    private static ErrorCategory Category(GuestMemoryException exception) => exception.Error switch
    {
        GuestMemoryError.ZeroSize or GuestMemoryError.UnalignedOffset or GuestMemoryError.UnalignedSize or GuestMemoryError.InvalidPointer or GuestMemoryError.MapFixed
            or GuestMemoryError.InvalidGuestRegion or GuestMemoryError.NoMemoryRegion or GuestMemoryError.MemoryRegionOverlap or GuestMemoryError.UnsortedMemoryRegions or GuestMemoryError.GuestAddressOverflow
            or GuestMemoryError.SocketPathTooLong or GuestMemoryError.NotAFilePath or GuestMemoryError.NotAFile or GuestMemoryError.ValueNotSupported
            or GuestMemoryError.MmapFlags or GuestMemoryError.InvalidOffsetLength or GuestMemoryError.InvalidFileOffset
            or GuestMemoryError.RangeNotMapped or GuestMemoryError.NotPageAligned or GuestMemoryError.InvalidAddress or GuestMemoryError.InvalidOffset
            or GuestMemoryError.AllocSizeZero or GuestMemoryError.BadAlignment or GuestMemoryError.IOPortOutOfRange or GuestMemoryError.InvalidAlloc
            or GuestMemoryError.OutOfBounds or GuestMemoryError.Overflow or GuestMemoryError.TooBig or GuestMemoryError.Misaligned or GuestMemoryError.SendTooManyFds or GuestMemoryError.InvalidPattern
            or GuestMemoryError.LayoutMismatch or GuestMemoryError.AddressNotCanonical or GuestMemoryError.PageTableAmbiguous => ErrorCategory.InvalidArgument,
        GuestMemoryError.InvalidGuestAddress or GuestMemoryError.SocketNotFound or GuestMemoryError.ImageNotFound or GuestMemoryError.UserNotFound or GuestMemoryError.GroupNotFound
            or GuestMemoryError.RecordNotFound or GuestMemoryError.HandlerNotFound or GuestMemoryError.RegionNotFound or GuestMemoryError.VmNotFound or GuestMemoryError.UffdImageNotFound or GuestMemoryError.SlotNotFound
            or GuestMemoryError.DigestNotFound or GuestMemoryError.ServiceNotFound or GuestMemoryError.BackendNotFound or GuestMemoryError.ProcessNotFound or GuestMemoryError.DomainNotFound or GuestMemoryError.ObjectNotFound or GuestMemoryError.BadAlloc or GuestMemoryError.PageNotPresent or GuestMemoryError.KernelNotFound or GuestMemoryError.KernelTypesNotFound or GuestMemoryError.SymbolNotFound or GuestMemoryError.GuestProcessNotFound or GuestMemoryError.NoGuestMemory or GuestMemoryError.LayoutUnknown or GuestMemoryError.ExportNotFound => ErrorCategory.ObjectNotFound,
        GuestMemoryError.MappingPastEof or GuestMemoryError.DigestMismatch or GuestMemoryError.InvalidLog or GuestMemoryError.BaseSizeMismatch or GuestMemoryError.InvalidMapping or GuestMemoryError.HandoverBadJson or GuestMemoryError.HandoverTooLarge
            or GuestMemoryError.InvalidRecord or GuestMemoryError.InvalidKey or GuestMemoryError.InvalidImage or GuestMemoryError.HandoverNoDescriptor or GuestMemoryError.HandoverTooManyDescriptors or GuestMemoryError.HandoverNotUserfaultfd or GuestMemoryError.HandoverNotMemfd or GuestMemoryError.InvalidBackendAddress
            or GuestMemoryError.BadJson or GuestMemoryError.PacketTooLarge or GuestMemoryError.RecvTooManyFds or GuestMemoryError.PageTableNotMapped or GuestMemoryError.PageTableInvalid or GuestMemoryError.InvalidKernelData => ErrorCategory.InvalidData,
        GuestMemoryError.OutOfMemory or GuestMemoryError.HugePagesExhausted or GuestMemoryError.OutOfSpace or GuestMemoryError.DiskFull => ErrorCategory.LimitsExceeded,
        GuestMemoryError.HugePageSizeUnsupported or GuestMemoryError.UffdUnsupported or GuestMemoryError.UffdRegisterFailed or GuestMemoryError.KvmUnsupported or GuestMemoryError.XenUnsupported or GuestMemoryError.ProcessUnsupported or GuestMemoryError.SoftDirtyUnsupported
            or GuestMemoryError.ImageUnsupported or GuestMemoryError.AddFdMappingIsUnsupported or GuestMemoryError.RemoveMappingIsUnsupported or GuestMemoryError.NoIoAllocator or GuestMemoryError.MissingPlatformMmioAddresses or GuestMemoryError.LiveUnsupported => ErrorCategory.NotImplemented,
        GuestMemoryError.RegionInUse or GuestMemoryError.RangeInUse or GuestMemoryError.ProcessTraced or GuestMemoryError.VmsInService or GuestMemoryError.SocketInUse or GuestMemoryError.ImageInUse or GuestMemoryError.TargetIsMapped or GuestMemoryError.PortInUse or GuestMemoryError.LiveBusy => ErrorCategory.ResourceBusy,
        GuestMemoryError.FileExists or GuestMemoryError.NameInUse or GuestMemoryError.ExistingAlloc or GuestMemoryError.RegionOverlap => ErrorCategory.ResourceExists,
        GuestMemoryError.RegionDisposed or GuestMemoryError.DirtyTrackingOff or GuestMemoryError.NotASocket or GuestMemoryError.VmDisposed or GuestMemoryError.LogDisposed or GuestMemoryError.MemoryNotShared => ErrorCategory.InvalidOperation,
        GuestMemoryError.UffdDenied or GuestMemoryError.KvmDenied or GuestMemoryError.XenDenied or GuestMemoryError.ProcessDenied or GuestMemoryError.UserDenied or GuestMemoryError.StoreDenied => ErrorCategory.PermissionDenied,
        GuestMemoryError.InsecureDirectory or GuestMemoryError.ImageUntrusted => ErrorCategory.SecurityError,
        GuestMemoryError.PeerClosed or GuestMemoryError.HandlerGone or GuestMemoryError.ControlFailed or GuestMemoryError.ConnectionRefused or GuestMemoryError.Disconnected or GuestMemoryError.StoreFailed or GuestMemoryError.MonitorFailed => ErrorCategory.ConnectionError,
        GuestMemoryError.HandoverTimeout or GuestMemoryError.WaitTimeout or GuestMemoryError.TubeTimeout => ErrorCategory.OperationTimeout,
        GuestMemoryError.PageNotAccessible or GuestMemoryError.FrameNotMapped or GuestMemoryError.GrantNotMapped or GuestMemoryError.PartialBuffer or GuestMemoryError.ImageUnreadable or GuestMemoryError.UnexpectedEof => ErrorCategory.ReadError,
        GuestMemoryError.WriteZero => ErrorCategory.WriteError,
        GuestMemoryError.RequestFailed => ErrorCategory.InvalidResult,
        GuestMemoryError.UnexpectedResponse => ErrorCategory.ProtocolError,
        GuestMemoryError.DirtyRingOverrun => ErrorCategory.LimitsExceeded,
        _ => exception is SyscallException { ErrorCode: Errno.EPERM or Errno.EACCES } ? ErrorCategory.PermissionDenied : ErrorCategory.InvalidOperation,
    };
}
