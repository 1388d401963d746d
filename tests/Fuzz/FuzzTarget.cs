namespace GuestMemory.Fuzz;

/// <summary>A parser of untrusted bytes. <paramref name="Run"/> returns where the bytes are read or refused as documented, and throws otherwise.</summary>
/// <param name="Name">The name, and that of its corpus and dictionary.</param>
/// <param name="Description">What it parses, and the form of its input where that is more than the bytes.</param>
/// <param name="Run">Parses an input.</param>
/// <param name="Missing">What the host lacks to run it, or null.</param>
internal sealed record FuzzTarget(string Name, string Description, Action<byte[]> Run, Func<string?>? Missing = null);
