using GuestMemory.Core;
using GuestMemory.Core.Interop;
using GuestMemory.Core.Userfault;

namespace GuestMemory.UffdHost;

/// <content>The records of touches, which workers read and note, and cannot open: the one that is replayed, and the one that is written.</content>
internal sealed partial class Supervisor
{
    private SafeDescriptor? _replay;
    private UffdRecorder? _recorder;

    // The list of the supervisor that this one takes over from.
    private SafeDescriptor? _touches;

    /// <summary>Keeps the list of touches that the first worker has begun or was given, and after another supervisor goes on with what that has saved.</summary>
    private void KeepRecord()
    {
        if (_options.RecordPath is not { } path || _recorder is not null || _unwanted.Count == 0) return;
        var list = _unwanted[^1];
        _unwanted.RemoveAt(_unwanted.Count - 1);
        try
        {
            _recorder = new UffdRecorder(list, _imageLength, path);
            if (_touches is null) _ = _images!.IsStored ? _recorder.GoOn() : _recorder.Begin();
        }
        catch (GuestMemoryException exception)
        {
            if (_recorder is null) list.Dispose();
            _failure = exception;
        }
    }

    /// <summary>The record that workers replay; null where there is none, or VMs that run go on without.</summary>
    private SafeDescriptor? OpenReplay()
    {
        if (_options.ReplayPath is not { } path) return null;
        try
        {
            using var opened = TouchRecord.Open(path);
            var descriptor = new SafeDescriptor((int)opened.DangerousGetHandle());
            opened.SetHandleAsInvalid();
            return descriptor;
        }
        catch (GuestMemoryException exception) when (_images!.IsStored)
        {
            Fail(exception.Message);
            return null;
        }
    }

    private void SaveRecord()
    {
        if (_recorder?.TrySave() is { } error) Fail(error);
    }
}
