namespace GuestMemory.Core.Tests;

/// <summary>The errors of actions that must fail.</summary>
internal static class Failure
{
    public static GuestMemoryError Of(Action action) => Assert.ThrowsAny<GuestMemoryException>(action).Error;

    /// <summary>A slice's error with its numbers; what a number does not belong to is 0.</summary>
    public static (GuestMemoryError Error, ulong Address, ulong Other) OfSlice(Action action)
    {
        var error = Assert.Throws<VolatileMemoryException>(action);
        return (error.Error, error.Address ?? error.Count, error.Error switch
        {
            GuestMemoryError.Overflow => error.Count,
            GuestMemoryError.OutOfBounds => 0,
            _ => error.Unit,
        });
    }
}
