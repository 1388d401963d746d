using GuestMemory.Core.Interop;

namespace GuestMemory.Core.Userfault;

/// <content>The images, which come and go while VMs of others are served. Changes are made on the handler's thread.</content>
internal sealed partial class UffdServer
{
    /// <summary>The images, in the order in which they were added. For any thread.</summary>
    public IReadOnlyList<UffdImageStatus> Images
    {
        get
        {
            lock (_lock) return [.. _images.Select(image => new UffdImageStatus
            {
                Options = image.Options,
                State = image.IsRemoved ? UffdImageState.Removing : UffdImageState.Serving,
                ConnectionCount = Served.Count(service => service.Image == image),
            })];
        }
    }

    /// <summary>Where it listens, for messages. For any thread.</summary>
    public string Place => UffdHandler.PlaceOf([.. Images.Select(static image => image.Options.SocketPath)]);

    /// <summary>Takes an image over, before <see cref="Run"/>.</summary>
    /// <param name="image">The image.</param>
    /// <param name="acceptTimeout">How long the first VMM may take to connect; null for ever.</param>
    public void Add(UffdImageService image, TimeSpan? acceptTimeout = null)
    {
        // Now, so that no VM waits for the start of its threads.
        image.Filler = _helpers.FillerOf(image.Policy);
        image.Readers = _options.NoReadAhead ? null : _helpers.GetReaders();
        image.Listen(_options, acceptTimeout, this);
        lock (_lock) _images.Add(image);
    }

    /// <summary>The same while it runs; for any thread. The image is taken over where it returns.</summary>
    /// <exception cref="GuestMemoryException">HandlerGone; NameInUse, ValueNotSupported: it does not go with the others.</exception>
    public void AddImage(UffdImageService image) => Invoke(() =>
    {
        UffdHandlerOptions.CheckAdded(image.Options, [.. _images.Select(static other => other.Options)]);
        Add(image);
        try
        {
            image.Handovers.Open(_epoll);
        }
        catch
        {
            lock (_lock) _images.Remove(image);
            throw;
        }
    });

    /// <summary>
    /// Takes an image away when no VM is served from it any more; from now on none comes. For any thread.
    /// </summary>
    /// <param name="name">The image.</param>
    /// <param name="force">Whether its VMs are given up.</param>
    /// <exception cref="GuestMemoryException">HandlerGone; UffdImageNotFound; VmsInService; ValueNotSupported: it is the only one.</exception>
    public void RemoveImage(string name, bool force) => Invoke(() =>
    {
        var image = _images.Find(image => !image.IsRemoved && image.Options.IsCalled(name)) ?? throw UffdImage.NotFound(name, Place);
        if (_images.Count(static other => !other.IsRemoved) == 1) throw UffdImage.IsLast(image.Name);
        var services = _services.FindAll(service => service.Image == image && !service.IsEnding);
        if (services.Count > 0 && !force) throw UffdImage.InService(image.Name, services.Count);
        LetGo(image);
        foreach (var service in services) service.StopAs(service.Vm.OnError == UffdOnError.Kill ? UffdOnError.Kill : UffdOnError.Poison);
    });

    /// <summary>The same where another process decides it and has no VM of the image any more.</summary>
    public void DropImage(string name) => Invoke(() =>
    {
        if (_images.Find(image => image.Options.IsCalled(name)) is { } image) LetGo(image);
    });

    /// <summary>Lets no VM in any more; with the last one that is served the image goes.</summary>
    private void LetGo(UffdImageService image)
    {
        image.Handovers.StopListening();
        lock (_lock) image.IsRemoved = true;
        CloseIfUnused(image);
    }

    private void CloseIfUnused(UffdImageService image)
    {
        if (!image.IsRemoved || _services.Exists(service => service.Image == image)) return;
        lock (_lock)
        {
            if (!_images.Remove(image)) return;
            _endedOfRemoved.Add(image.Ended);
        }

        // Reading ahead, whose end it waits for, may wait for a disk.
        new Thread(image.Dispose) { IsBackground = true, Name = "uffd-close" }.Start();
    }

    /// <summary>Has something done on the handler's thread, and waits for it. For any other thread.</summary>
    private void Invoke(Action action)
    {
        var call = new Task(() =>
        {
            if (_isOver) throw Gone();
            action();
        });
        lock (_lock)
        {
            if (_isOver) throw Gone();
            _calls.Enqueue(call);
            EventFd.Signal(_wake);
        }

        call.GetAwaiter().GetResult();
    }

    /// <summary>Does what was asked for, or refuses it where the handler has ended. For the handler's thread.</summary>
    private void FollowCalls()
    {
        while (_calls.TryDequeue(out var call)) call.RunSynchronously();
    }

    private static GuestMemoryException Gone() => new(GuestMemoryError.HandlerGone, "The handler has ended.");
}
