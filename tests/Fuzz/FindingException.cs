namespace GuestMemory.Fuzz;

/// <summary>A parser did what it must not do.</summary>
internal sealed class FindingException(string message) : Exception(message);
