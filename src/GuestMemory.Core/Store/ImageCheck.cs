namespace GuestMemory.Core.Store;

/// <summary>What a test of a stored image found.</summary>
/// <param name="Location">The image.</param>
/// <param name="ChunkCount">The different chunks that were read.</param>
/// <param name="Size">Their bytes.</param>
/// <param name="Errors">What is wrong, a line for each chunk; empty where nothing is.</param>
public sealed record ImageCheck(string Location, int ChunkCount, ulong Size, IReadOnlyList<string> Errors)
{
    /// <summary>Whether every chunk is what its digest says.</summary>
    public bool IsWhole => Errors.Count == 0;
}

/// <summary>What a collection did.</summary>
/// <param name="Removed">The objects of chunks that were removed.</param>
/// <param name="RemovedSize">Their bytes.</param>
/// <param name="Waiting">Those that no image has any more, and that a later collection removes.</param>
/// <param name="WaitingSize">Their bytes.</param>
/// <param name="Kept">Those that images have.</param>
/// <param name="KeptSize">Their bytes.</param>
public sealed record CollectionResult(int Removed, ulong RemovedSize, int Waiting, ulong WaitingSize, int Kept, ulong KeptSize);
