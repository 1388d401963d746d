namespace GuestMemory.Core;

/// <summary>Several processes that are held at once; all, or none.</summary>
internal sealed class MemoryHold(List<IDisposable> holds) : IDisposable
{
    public static IDisposable? Of(IEnumerable<IMemoryProcess> processes)
    {
        var hold = new MemoryHold([]);
        try
        {
            hold.AddAll(processes);
            return hold.IsEmpty ? null : hold;
        }
        catch
        {
            hold.Dispose();
            throw;
        }
    }

    private bool IsEmpty => holds.Count == 0;

    public void Dispose()
    {
        foreach (var hold in holds) hold.Dispose();
        holds.Clear();
    }

    private void AddAll(IEnumerable<IMemoryProcess> processes)
    {
        foreach (var process in processes)
        {
            if (process.Hold() is { } hold) holds.Add(hold);
        }
    }
}
