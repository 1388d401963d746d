using GuestMemory.Core;
using GuestMemory.Core.Interop;
using GuestMemory.Core.Userfault;

namespace GuestMemory.UffdHost;

/// <content>The images: those that the handler starts with, and those that come and go while it runs. One that fails does so alone where there are others.</content>
internal sealed partial class Supervisor
{
    // Replaced as a whole: the thread of the metrics reads it.
    private volatile ServedImage[] _images = [];

    // The request whose image is being added, until the client has heard what became of it.
    private UffdControlRequest? _addRequest;
    private ServedImage? _adding;
    private GuestMemoryException? _addFailure;

    private int _lastImage;

    private string Place => UffdHandler.PlaceOf([.. _images.Select(static image => image.SocketPath)]);

    private ServedImage? FindImage(string? name) => Array.Find(_images, image => image.Options.IsCalled(name));

    /// <summary>Opens the images that are asked for, or goes on with those that came with this process.</summary>
    /// <exception cref="GuestMemoryException">ImageChanged, ImageNotFound, ImageUnreadable; what is wrong with the options.</exception>
    private void OpenImages()
    {
        var kept = KeptImages.Take(_systemd);
        try
        {
            // Without VMs it does not matter which files they once were.
            var hasVms = _predecessor is not null || _systemd.Descriptors.Exists(static item => VmRecords.Parse(item.Name) is not null);
            var asked = _predecessor is null ? Asked(kept, hasVms) : Given(kept);
            foreach (var (options, prefix) in asked)
            {
                var image = new ServedImage(options, prefix) { Number = ++_lastImage };
                _images = [.. _images, image];
                Open(image, kept.GetValueOrDefault(prefix), hasVms, isAlone: asked.Count == 1);
            }
        }
        finally
        {
            // Those that are used were taken out.
            foreach (var files in kept.Values) files.Dispose();
        }
    }

    /// <summary>The images of the options; and those that were added to a handler before this one, for its VMs.</summary>
    private List<(UffdImageOptions Options, string Prefix)> Asked(Dictionary<string, KeptFiles> kept, bool hasVms)
    {
        var asked = _options.AllImages().Select(image => (Options: image, Prefix: _options.Images.Count == 0 ? "" : ServedImage.PrefixOf(image.Name))).ToList();
        foreach (var (prefix, files) in kept)
        {
            if (hasVms && files.Record?.Options is { } added && ServedImage.PrefixOf(added.Name) == prefix && !asked.Exists(image => image.Prefix == prefix || image.Options.IsCalled(added.Name))) asked.Add((added, prefix));
        }

        return asked;
    }

    /// <summary>The images that a predecessor gives, whichever this program was started with.</summary>
    private List<(UffdImageOptions Options, string Prefix)> Given(Dictionary<string, KeptFiles> kept) =>
        [.. kept.Select(item => (item.Value.Record?.Options ?? _options.OnlyImage, item.Key))];

    private void Open(ServedImage image, KeptFiles? kept, bool hasVms, bool isAlone)
    {
        try
        {
            if (hasVms && kept?.Failure is { } failure) throw failure;
            image.Files = hasVms && kept?.Record is not null ? KeptImages.Restore(image.Options, image.Prefix, kept) : KeptImages.Open(image.Options, image.Prefix);
        }
        catch (GuestMemoryException exception) when (hasVms && !isAlone && _predecessor is null)
        {
            // The VMs of the others go on.
            FailImage(image, exception);
        }

        OpenReplay(image);
        image.OpenRecorder(_predecessor?.TakeTouches(image));
    }

    /// <summary>Opens the record that workers replay; VMs that run go on without where it is gone.</summary>
    private void OpenReplay(ServedImage image)
    {
        if (image.Options.ReplayPath is not { } path) return;
        try
        {
            using var opened = TouchRecord.Open(path);
            var descriptor = new SafeDescriptor((int)opened.DangerousGetHandle());
            opened.SetHandleAsInvalid();
            image.Replay = descriptor;
        }
        catch (GuestMemoryException exception) when (image.Files is not { IsStored: false })
        {
            Fail(exception.Message);
        }
    }

    /// <summary>Opens the sockets, and takes over the VMs that came with this process.</summary>
    private void OpenListeners()
    {
        var restored = _vms.Restore(prefix => Array.Find(_images, image => image.Prefix == prefix && (image.Failure is not null || image.Files is { IsStored: true })), Fail);
        var acceptTimeout = restored.Count > 0 || _vms.Total > 0 ? null : _options.AcceptTimeout;
        var supply = Supply();
        // That without a name takes any socket that is no other one's.
        foreach (var image in _images.OrderByDescending(static image => image.Prefix.Length > 0))
        {
            image.Handovers = VmReceiver.Open(image, supply, _systemd, restored, acceptTimeout);
            if (image.Failure is not null) image.Handovers.StopListening();
        }
    }

    private VmReceiver.Supply Supply() => new(_options, _epoll, _vms, () => _images.Sum(static image => image.Handovers?.ConnectionCount ?? 0), Offer, FailOf);

    /// <summary>Sees whether the files are what they were; an image that has changed fails alone, and only the last one fails all.</summary>
    /// <returns>Whether one has failed now.</returns>
    /// <exception cref="GuestMemoryException">ImageChanged.</exception>
    private bool CheckImages()
    {
        var hasFailed = false;
        foreach (var image in _images)
        {
            if (image.Failure is not null) continue;
            try
            {
                image.Files!.Check();
            }
            catch (GuestMemoryException exception) when (exception.Error == GuestMemoryError.ImageChanged && _images.Length > 1)
            {
                FailImage(image, exception);
                hasFailed = true;
            }
        }

        return hasFailed;
    }

    /// <summary>The files of an image must not be read any more: workers from now on serve its VMs without, and no VM comes.</summary>
    private void FailImage(ServedImage image, GuestMemoryException exception)
    {
        image.Failure = exception;
        image.Handovers?.StopListening();
        Fail($"The image '{image.Name}' is not served any more: {exception.Message}");
    }

    /// <summary>Gives a worker that starts all images.</summary>
    private void SendImages(WorkerProcess worker)
    {
        foreach (var image in _images) GiveImage(worker, image);
        _ = worker.Channel.TrySend(new ChannelMessage { Type = ChannelMessageType.Begin });
    }

    /// <summary>Gives a worker an image that it does not have. One that does not take it is no worker.</summary>
    private static void GiveImage(WorkerProcess worker, ServedImage image)
    {
        if (worker.Given.Add(image) && !image.TrySend(worker.Channel)) worker.Kill();
    }

    private void ImageReady(WorkerProcess worker, ChannelMessage message)
    {
        // It may have been removed meanwhile.
        if (Array.Find(_images, image => image.Number == message.Number) is not { } image) return;
        worker.Opened.Add(image);
        if (image.Failure is not null)
        {
            if (worker == _worker) image.IsReady = true;
            return;
        }

        try
        {
            image.Files!.CheckLayout(message.Layout ?? "");
        }
        catch (GuestMemoryException exception) when (exception.Error == GuestMemoryError.ImageChanged && _images.Length > 1)
        {
            FailImage(image, exception);
            worker.Kill();
            return;
        }

        image.Length = message.ImageLength;
        if (worker == _worker) MakeReady(image);
    }

    /// <summary>The worker that has the VMs can serve those of an image.</summary>
    private void MakeReady(ServedImage image)
    {
        if (image.IsReady) return;
        try
        {
            image.BeginRecord();
        }
        catch (GuestMemoryException exception)
        {
            if (image == _adding) DropAdded(exception);
            else _failure = exception;
            return;
        }

        image.IsReady = true;
        if (image != _adding) return;
        _adding = null;
        image.Files!.Store(_systemd);
        if (_options.User is null) _privileges = Privileges.Of(_options, null, _images);
        image.Handovers!.Resume();
        // It takes what another one has opened.
        if (_spare is not null) GiveImage(_spare, image);
        Log.Lines.ImageAdded(image.Name, image.Options.MemoryPath, image.SocketPath);
    }

    /// <summary>Serves one more image. Safe to be asked again with the same request: true when it is served.</summary>
    /// <exception cref="GuestMemoryException">Why it cannot be.</exception>
    private bool AddImage(UffdControlRequest request)
    {
        if (!ReferenceEquals(_addRequest, request))
        {
            // A new program would not know it; and one at a time.
            if (_successor is not null || _adding is not null) return false;
            BeginAdding(request.NewImage ?? throw new GuestMemoryException(GuestMemoryError.ValueNotSupported, "add-image needs the image (options)."));
            _addRequest = request;
        }

        if (_adding is not null) return false;
        _addRequest = null;
        return _addFailure is null ? true : throw _addFailure;
    }

    private void BeginAdding(UffdImageOptions options)
    {
        UffdHandlerOptions.CheckAdded(options, [.. _images.Select(static image => image.Options with { SocketPath = image.SocketPath })]);
        var image = new ServedImage(options, ServedImage.PrefixOf(options.Name)) { Number = ++_lastImage };
        try
        {
            image.Files = KeptImages.Open(options, image.Prefix);
            OpenReplay(image);
            image.OpenRecorder(null);
            image.Handovers = VmReceiver.Open(image, Supply(), _systemd, [], acceptTimeout: null);
        }
        catch
        {
            image.Dispose();
            throw;
        }

        // VMMs that connect wait until a worker has it.
        image.Handovers.Suspend();
        _images = [.. _images, image];
        _adding = image;
        _addFailure = null;
        if (_worker is not null) GiveImage(_worker, image);
    }

    /// <summary>The image that is being added cannot be served; nothing is left of it.</summary>
    private void DropAdded(GuestMemoryException exception)
    {
        var image = _adding!;
        _adding = null;
        _addFailure = exception;
        Close(image);
    }

    /// <summary>A worker cannot open an image that came after its start.</summary>
    private void ImageFailed(WorkerProcess worker, ChannelMessage message)
    {
        if (_adding is not null && _adding.Number == message.Number) DropAdded(ErrorOf(message));
        else if (Array.Exists(_images, image => image.Number == message.Number))
        {
            // Another worker has opened it, so that the next one may.
            Fail($"worker {worker.ProcessId} could not open the image '{message.Image}': {message.Message}");
            worker.Kill();
        }
    }

    /// <summary>Takes an image away: at once where no VM is served from it, else when the last one has been given up.</summary>
    private void RemoveImage(UffdControlRequest request)
    {
        var image = FindImage(request.Name);
        if (image is null or { IsRemoved: true } || image == _adding) throw UffdImage.NotFound(request.Name ?? "", Place);
        if (_images.Count(other => !other.IsRemoved && other != _adding) == 1) throw UffdImage.IsLast(image.Name);
        if (_successor is not null) throw new GuestMemoryException(GuestMemoryError.ControlFailed, "Another program is about to take the handler over; ask it when it has.");
        var vms = _vms.Where(vm => vm.Image == image).ToArray();
        if (vms.Length > 0 && !request.Force) throw UffdImage.InService(image.Name, vms.Length);
        Log.Lines.ImageRemoved(image.Name, vms.Length);
        image.IsRemoved = true;
        image.Handovers!.StopListening();
        foreach (var vm in vms) StopVm(vm, (vm.List.OnError ?? _options.OnError) == UffdOnError.Kill ? UffdOnError.Kill : UffdOnError.Poison);
        CloseRemovedImages();
    }

    /// <summary>Closes the images that were removed and that no VM is served from any more.</summary>
    private void CloseRemovedImages()
    {
        foreach (var image in _images)
        {
            if (image.IsRemoved && !_vms.Uses(image)) Close(image);
        }
    }

    private void Close(ServedImage image)
    {
        foreach (var worker in new[] { _worker, _spare })
        {
            if (worker is null || !worker.Given.Remove(image)) continue;
            _ = worker.Opened.Remove(image);
            if (!worker.Channel.TrySend(new ChannelMessage { Type = ChannelMessageType.RemoveImage, Image = image.Name })) worker.Kill();
        }

        _images = [.. _images.Where(other => other != image)];
        _vms.Forget(image);
        image.Files?.Forget(_systemd);
        if (_systemd.IsThere) _systemd.Remove(image.Prefix + VmReceiver.StoredListener);
        image.Dispose();
    }

    private void SaveRecords()
    {
        foreach (var image in _images)
        {
            if (image.Recorder?.TrySave() is { } error) Fail(error);
        }
    }

    private static GuestMemoryException ErrorOf(ChannelMessage message) =>
        new(NamedConverter<GuestMemoryError>.TryParse(message.ErrorId, out var error) ? error : GuestMemoryError.HandlerFailed, message.Message ?? "The worker cannot go on.");
}
