using System.Collections.Concurrent;
using System.Diagnostics;
using GuestMemory.Core.Interop;
using Microsoft.Win32.SafeHandles;

namespace GuestMemory.Core.Userfault;

/// <summary>A handler in a process of its own, seen through its control socket. Its figures are asked for when they are read.</summary>
internal sealed class RemoteUffdHandler : UffdHandler
{
    private const int MaxLooks = 5;

    // The old program itself says that the time is over, and needs some for what it has begun.
    private static readonly TimeSpan UpgradeMargin = TimeSpan.FromSeconds(30);

    // The files of a large image's layers are read before it is served.
    private static readonly TimeSpan ImageTimeout = TimeSpan.FromMinutes(2);

    /// <summary>How old figures may be: the properties of one row of a table are of one moment. Tests ask anew each time.</summary>
    internal static TimeSpan Fresh { get; set; } = TimeSpan.FromMilliseconds(20);

    private static readonly ConcurrentDictionary<string, RemoteUffdHandler> s_known = new(StringComparer.Ordinal);

    private readonly UffdControlClient _client;
    private readonly Lock _lock = new();
    private UffdStatus _status;
    private volatile string _controlPath;
    private long _askedAt;

    private RemoteUffdHandler(string controlPath, UffdControlClient client, UffdStatus status)
    {
        _controlPath = controlPath;
        _client = client;
        _status = status;
        _askedAt = Stopwatch.GetTimestamp();
    }

    public override int Id => ProcessId;

    public override string SocketPath => _status.SocketPath!;

    public override string MemoryPath => _status.MemoryPath!;

    public override IReadOnlyList<UffdImage> Images
    {
        get
        {
            var status = Current;
            // What a program of before there were several says.
            IReadOnlyList<UffdImageStatus> images = status.Images.Count > 0 || status.SocketPath is not { } socket ? status.Images
                : [new UffdImageStatus { Options = new UffdHandlerOptions { SocketPath = socket, MemoryPath = status.MemoryPath ?? "" }.OnlyImage, ConnectionCount = status.ConnectionCount }];
            return [.. images.Select(image => new UffdImage(this, image))];
        }
    }

    public override UffdStrategy Strategy => _status.Strategy;

    public override int ProcessId => Current.ProcessId;

    public override UffdHandlerState State => Current.State;

    public override int WorkerProcessId => Current.WorkerProcessId;

    public override int WorkerCount => Current.WorkerCount;

    public override int ConnectionCount => Current.ConnectionCount;

    public override int TotalConnectionCount => Current.TotalConnectionCount;

    public override int AbandonedCount => Current.AbandonedCount;

    public override long FaultCount => Totals.FaultCount;

    public override long ByteCount => Totals.ByteCount;

    public override TimeSpan LatencyP50 => Totals.LatencyP50;

    public override TimeSpan LatencyP99 => Totals.LatencyP99;

    public override TimeSpan LatencyMax => Totals.LatencyMax;

    public override int? MetricsPort => Current.MetricsPort;

    public override string? Error => Current.Error;

    private UffdFigures Totals => Current.Figures ?? throw new GuestMemoryException(GuestMemoryError.ControlFailed, "The handler's process sent no figures.");

    private UffdStatus Current
    {
        get
        {
            lock (_lock)
            {
                if (!_client.IsOver && Stopwatch.GetElapsedTime(_askedAt) < Fresh) return _status;
                try
                {
                    var answer = _client.Ask(new UffdControlRequest { Request = UffdControlRequest.Status }, CancellationToken.None);
                    _status = answer ?? LastWords();
                }
                catch (GuestMemoryException exception)
                {
                    _status = _status with { Error = exception.Message };
                }

                _askedAt = Stopwatch.GetTimestamp();
                return _status;
            }
        }
    }

    public static UffdHandler Start(UffdHandlerOptions options, CancellationToken cancellation)
    {
        ArgumentNullException.ThrowIfNull(options);
        var (path, status) = UffdHostProcess.Start(options, cancellation);
        // It listens. To wait for an answer here would leave a handler that is slow to give one running, and the caller without it.
        var client = UffdControlClient.TryConnect(path, out _)
            ?? throw new GuestMemoryException(GuestMemoryError.HandlerStartFailed, $"The handler ended right after its start; its log is {UffdRuntimeFolder.LogOf(path)}.");
        return s_known[path] = new RemoteUffdHandler(path, client, status);
    }

    public static new IReadOnlyList<UffdHandler> FindAll()
    {
        foreach (var (path, handler) in s_known)
        {
            if (handler._client.WaitForEnd(0)) s_known.TryRemove(path, out _);
            else if (!File.Exists(path)) handler.Follow();
        }

        var found = new List<RemoteUffdHandler>();
        for (var look = 0; look < MaxLooks; look++)
        {
            found.Clear();
            var hasMoved = false;
            foreach (var path in UffdRuntimeFolder.Sockets().ToArray())
            {
                if (TryConnect(path, ref hasMoved) is { } handler) found.Add(handler);
            }

            // The process that has it now has given it another name meanwhile.
            if (!hasMoved) break;
        }

        return [.. found.DistinctBy(static handler => handler._status.ProcessId).OrderBy(static handler => handler._status.ProcessId)];
    }

    public override UffdFigures GetFigures()
    {
        var totals = Totals with { SocketPath = SocketPath };
        if (totals.Vms.Count > 0 || ConnectionCount == 0) return totals;
        // Those of many VMs are too long for a line.
        using var file = _client.AskForFile(new UffdControlRequest { Request = UffdControlRequest.Figures }, CancellationToken.None, out UffdControlReply _);
        return file is null ? totals : UffdStatus.ReadFigures(file) with { SocketPath = SocketPath };
    }

    internal override IReadOnlyList<DirtyBitmap> GetDirtyBitmapsOf(int? vm, bool clear)
    {
        using var file = _client.AskForFile(new UffdControlRequest { Request = UffdControlRequest.Dirty, Vm = vm ?? 0, Clear = clear }, CancellationToken.None, out var reply)
            ?? throw new GuestMemoryException(GuestMemoryError.HandlerGone, $"The handler at {Place} has ended, and the record of what its VMs wrote with it.");
        var bitmaps = WrittenPages.FromFile(file);
        // What has not arrived is told again the next time.
        if (clear) _ = _client.Ask(new UffdControlRequest { Request = UffdControlRequest.Cleared, Number = reply.Number }, CancellationToken.None);
        return bitmaps;
    }

    internal override void SetVm(int id, string? name, UffdOnError? onError) => AskOfVm(new UffdControlRequest { Request = UffdControlRequest.SetVm, Vm = id, Name = name, OnError = onError });

    internal override void StopVm(int id, UffdOnError action) => AskOfVm(new UffdControlRequest { Request = UffdControlRequest.StopVm, Vm = id, OnError = action });

    internal override UffdVmFiles OpenFiles(int id)
    {
        var opened = new List<IDisposable>();
        try
        {
            var memory = Part(opened, new UffdControlRequest { Request = UffdControlRequest.Part, Vm = id, WhichPart = UffdControlRequest.Memory }, out _);
            var state = Part(opened, new UffdControlRequest { Request = UffdControlRequest.Part, Vm = id, WhichPart = UffdControlRequest.State }, out _);
            using var list = Part(opened, new UffdControlRequest { Request = UffdControlRequest.Part, Vm = id, WhichPart = UffdControlRequest.Mappings }, out _);
            var images = new List<ImageFile>();
            for (var count = 1; images.Count < count;)
            {
                var image = Part(opened, new UffdControlRequest { Request = UffdControlRequest.Part, Vm = id, WhichPart = UffdControlRequest.Image, Number = images.Count }, out var reply);
                count = reply.Number;
                images.Add(ImageFile.Adopt(reply.Path ?? "", image, reply.Part));
            }

            return new UffdVmFiles(memory, state, UffdMappingList.FromFile(list), ImageFile.OpenSource(images));
        }
        catch
        {
            foreach (var part in opened) part.Dispose();
            throw;
        }
    }

    internal override UffdLiveExport BeginLive(int id, SafeFileHandle output)
    {
        var socket = _client.AskForFile(new UffdControlRequest { Request = UffdControlRequest.Live, Vm = id }, CancellationToken.None, out _) ?? throw UffdServedVm.NotFound(id, Place);
        return new RemoteLiveExport(socket, output);
    }

    internal override void Add(UffdImageOptions image, CancellationToken cancellation) =>
        AskOfImage(new UffdControlRequest { Request = UffdControlRequest.AddImage, NewImage = image }, cancellation);

    internal override void RemoveImage(string name, bool force) =>
        AskOfImage(new UffdControlRequest { Request = UffdControlRequest.RemoveImage, Name = name, Force = force }, CancellationToken.None);

    internal override bool HasVm(int id) => !_client.IsOver && GetFigures().Vms.Any(vm => vm.VmId == id);

    public override bool Wait(TimeSpan timeout, CancellationToken cancellation = default)
    {
        var started = Stopwatch.GetTimestamp();
        while (true)
        {
            var left = timeout == Timeout.InfiniteTimeSpan ? int.MaxValue : (timeout - Stopwatch.GetElapsedTime(started)).TotalMilliseconds;
            if (_client.WaitForEnd((int)Math.Clamp(left, 0, int.MaxValue))) return true;
            if (left <= 0) return false;
            cancellation.ThrowIfCancellationRequested();
        }
    }

    public override void Stop()
    {
        _ = _client.Ask(new UffdControlRequest { Request = UffdControlRequest.Stop }, CancellationToken.None);
        s_known.TryRemove(_controlPath, out _);
    }

    public override void Upgrade(TimeSpan timeout, CancellationToken cancellation = default)
    {
        var request = new UffdControlRequest { Request = UffdControlRequest.Upgrade, Program = UffdHostProcess.CommandLine(), Timeout = (int)Math.Clamp(timeout.TotalMilliseconds, 1, int.MaxValue) };
        if (_client.Ask(request, cancellation, timeout + UpgradeMargin) is null)
            throw new GuestMemoryException(GuestMemoryError.HandlerGone, $"The handler at {Place} has ended.");
        lock (_lock) _askedAt = 0;
        Follow();
    }

    private SafeDescriptor Part(List<IDisposable> opened, UffdControlRequest request, out UffdControlReply reply)
    {
        var file = _client.AskForFile(request, CancellationToken.None, out reply) ?? throw UffdServedVm.NotFound(request.Vm, Place);
        opened.Add(file);
        return file;
    }

    private void AskOfImage(UffdControlRequest request, CancellationToken cancellation)
    {
        _ = _client.Ask(request, cancellation, ImageTimeout);
        if (_client.IsOver) throw new GuestMemoryException(GuestMemoryError.HandlerGone, $"The handler at {Place} has ended.");
        // What is told next is of afterwards.
        lock (_lock) _askedAt = 0;
    }

    private void AskOfVm(UffdControlRequest request)
    {
        if (_client.Ask(request, CancellationToken.None) is null && _client.IsOver) throw UffdServedVm.NotFound(request.Vm, Place);
        // What is told next is of afterwards.
        lock (_lock) _askedAt = 0;
    }

    private protected override void Dispose(bool disposing)
    {
        if (!disposing) return;
        s_known.TryRemove(_controlPath, out _);
        _client.Dispose();
    }

    private static RemoteUffdHandler? TryConnect(string path, ref bool hasMoved)
    {
        try
        {
            return Connect(path, ref hasMoved);
        }
        catch (GuestMemoryException)
        {
            // A process that does not answer cannot be shown; it may do so the next time.
            return null;
        }
    }

    /// <summary>The handler behind a control socket; null where there is none, and then the socket is taken away.</summary>
    private static RemoteUffdHandler? Connect(string path, ref bool hasMoved)
    {
        if (s_known.TryGetValue(path, out var known) && !known._client.WaitForEnd(0)) return known;
        var client = UffdControlClient.TryConnect(path, out var error);
        if (client is null)
        {
            if (error == Errno.ECONNREFUSED) File.Delete(path);
            hasMoved |= error == Errno.ENOENT;
            return null;
        }

        UffdStatus? status = null;
        try
        {
            status = client.Ask(new UffdControlRequest { Request = UffdControlRequest.Status }, CancellationToken.None);
            return status is null ? null : s_known[path] = new RemoteUffdHandler(path, client, status);
        }
        finally
        {
            if (status is null) client.Dispose();
        }
    }

    /// <summary>Keeps the handler under the name that its control socket has now, where another process has taken it over.</summary>
    private void Follow()
    {
        var (before, now) = (_controlPath, UffdRuntimeFolder.SocketOf(Path.GetDirectoryName(_controlPath)!, Current.ProcessId));
        // A process of another user may not rename it.
        if (now == before || !File.Exists(now)) return;
        s_known.TryRemove(new KeyValuePair<string, RemoteUffdHandler>(before, this));
        s_known[now] = this;
        _controlPath = now;
    }

    private UffdStatus LastWords() => _client.Ended ?? (_status.State is UffdHandlerState.Stopped or UffdHandlerState.Failed ? _status : _status with
    {
        State = UffdHandlerState.Failed,
        ConnectionCount = 0,
        Error = $"The handler's process {_status.ProcessId} has ended; its log is {UffdRuntimeFolder.LogOf(_controlPath)}. Its worker {_status.WorkerProcessId}, if that still runs, serves its VMs until they have ended.",
    });
}
