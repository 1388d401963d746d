using GuestMemory.Core.Images;
using GuestMemory.Core.Kvm;
using Microsoft.Win32.SafeHandles;

namespace GuestMemory.Core.Userfault;

/// <summary>Exports of memory as it is at one instant, while the VM runs.</summary>
public static class LiveExport
{
    /// <summary>
    /// Writes the base memory of a VM of this process to a raw image, as it is at one instant, while the VM runs: what <see cref="RawImage.WriteFull"/> of <see cref="KvmVm.Memory"/> writes of a
    /// VM that stands still. A userfaultfd write-protects the memory meanwhile. At the instant every page is protected, and who writes waits until then: a vCPU, KVM itself, or a
    /// thread of this process. From then on each page is copied before it changes, by the thread that answers the faults or by this call. Pages that are given back
    /// (<see cref="KvmVm.HandleBalloonEvent"/>, <see cref="MmapRegion.Discard"/>) are copied first.
    /// <para>Meanwhile every access of this process to the memory is guarded. Memory that was added to the VM is not in the image. What another process, or another mapping of a
    /// memfd, writes is no fault, and may be in the image though it is later. The image holds no state of vCPUs or devices:
    /// <see cref="LiveExportOptions.StopsVmm"/> and <see cref="LiveExportOptions.AtInstant"/> are for that. Dirty bitmaps and logs stay as they are.</para>
    /// </summary>
    /// <param name="vm">The VM; it runs, or does not.</param>
    /// <param name="path">The file; made beside its place with the mode 0600 and renamed when it is complete.</param>
    /// <param name="overwrite">Whether a file that is there may be replaced.</param>
    /// <param name="options">What happens besides; null for nothing. StopsVmm pauses the VM (<see cref="KvmVm.Pause"/>) until AtInstant has returned.</param>
    /// <param name="cancellation">Ends the export; what was written is removed and the VM goes on.</param>
    /// <exception cref="GuestMemoryException">LiveUnsupported: a region is neither anonymous memory of ordinary pages nor a shared mapping of a sealed memfd, wraps memory of the caller's, or has its
    /// pages from a handler, or its memory was added to the VM once more (<see cref="SlotMapping.External"/>), or this kernel cannot write-protect it (Linux 6.4 can); LiveBusy: another such export of the VM is under way; LiveFailed: memory of the VM was removed; RegionInUse: a span or a reference
    /// over its memory is in use; UffdDenied; VmDisposed; FileExists; DiskFull; PageNotAccessible.</exception>
    public static ImageInfo ExportLive(this KvmVm vm, string path, bool overwrite, LiveExportOptions? options = null, CancellationToken cancellation = default)
    {
        ArgumentNullException.ThrowIfNull(vm);
        if (vm.IsDisposed) throw new GuestMemoryException(GuestMemoryError.VmDisposed, $"{vm} was removed.");
        return Write(path, vm.Memory.Size, overwrite, options ?? new LiveExportOptions(), file => new LocalMemoryExport(vm, file, cancellation), () => vm.Pause(cancellation), cancellation);
    }

    /// <summary>The steps of an export, in their order.</summary>
    /// <param name="path">The file.</param>
    /// <param name="size">The bytes of the memory.</param>
    /// <param name="overwrite">Whether a file that is there may be replaced.</param>
    /// <param name="options">What happens besides.</param>
    /// <param name="begin">Begins it.</param>
    /// <param name="stop">Stops the VM until disposal, where that was asked for.</param>
    /// <param name="cancellation">Ends the export.</param>
    internal static ImageInfo Write(string path, ulong size, bool overwrite, LiveExportOptions options, Func<SafeFileHandle, UffdLiveExport> begin, Func<IDisposable> stop, CancellationToken cancellation)
    {
        string? digest = null;
        ImageTarget.RefuseSharedLink(path);
        if (options.Digest) DigestSidecar.RequirePlace(path, overwrite);
        var (bytes, pages) = RawImage.WriteBeside(path, size, overwrite, file =>
        {
            (ulong Bytes, long Pages) written;
            using (var export = begin(file))
            {
                export.Protect(cancellation);
                using (options.StopsVmm ? stop() : null)
                {
                    export.Take();
                    options.AtInstant?.Invoke();
                }

                written = export.Sweep(options.Progress, cancellation);
            }

            // The VM is as before: its memory is not protected while the file is read.
            if (options.Digest) digest = RawImage.DigestOf(file, size, cancellation);
            return written;
        }, cancellation);
        if (digest is not null) DigestSidecar.Write(path, digest);
        return new ImageInfo(path, ImageFormat.Raw, size, bytes, pages, digest);
    }
}
