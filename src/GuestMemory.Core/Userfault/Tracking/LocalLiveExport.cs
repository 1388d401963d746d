using GuestMemory.Core.Interop;
using Microsoft.Win32.SafeHandles;

namespace GuestMemory.Core.Userfault;

/// <summary>An export of a VM that this process serves.</summary>
internal sealed class LocalLiveExport : UffdLiveExport
{
    private readonly UffdVmService _service;
    private readonly UffdVmFiles _files;
    private readonly LiveCapture _capture;
    private bool _isBegun;

    /// <param name="service">The VM's service.</param>
    /// <param name="files">What the VM's memory is read by; taken over, also where it fails.</param>
    /// <param name="output">The file, as long as the memory and all zeros; stays the caller's.</param>
    /// <param name="information">The fdinfo of the VM's userfaultfd; taken over where it returns.</param>
    /// <exception cref="GuestMemoryException">LiveUnsupported, LiveBusy; VmNotFound.</exception>
    public LocalLiveExport(UffdVmService service, UffdVmFiles files, SafeFileHandle output, SafeFileHandle information)
    {
        (_service, _files) = (service, files);
        try
        {
            _capture = new LiveCapture(files, output, information);
        }
        catch
        {
            files.Leave();
            throw;
        }

        try
        {
            service.Invoke((vm, _) => vm.BeginLive(_capture, _files));
            _isBegun = true;
        }
        catch
        {
            Dispose();
            throw;
        }
    }

    public override void Protect(CancellationToken cancellation)
    {
        try
        {
            _service.Vm.ProtectLive(_capture, cancellation);
        }
        catch (ObjectDisposedException)
        {
            throw new GuestMemoryException(GuestMemoryError.LiveFailed, "The VM ended before its memory was exported.");
        }
    }

    public override void Take()
    {
        _service.Invoke(static (vm, scratch) => vm.TakeLive(scratch));
        _capture.ThrowIfFailed();
    }

    public override (ulong Bytes, long Pages) Sweep(Action<ulong>? progress, CancellationToken cancellation)
    {
        _capture.Sweep(progress, cancellation);
        return _capture.Written;
    }

    protected override void Dispose(bool disposing)
    {
        if (!disposing) return;
        if (_isBegun)
        {
            _isBegun = false;
            try
            {
                _service.Invoke((vm, _) => vm.EndLive(_capture));
            }
            catch (GuestMemoryException)
            {
                // The VM is not served any more, and has ended it.
            }
        }

        _capture?.Dispose();
        _files.Leave();
    }
}
