namespace GuestMemory.Core.Tests;

/// <summary>The program tracked.c, compiled when it is needed first, also as a stripped static one, and tracked32.c.</summary>
public sealed class TrackedProgram : IDisposable
{
    private readonly TestFolder _folder = new();

    public string Path => Compile("tracked.c");

    public string StaticPath => Compile("tracked.c", "-static", "-s");

    /// <summary>Null where this compiler makes no 32-bit programs.</summary>
    public string? Path32
    {
        get
        {
            var program = _folder["tracked32"];
            return Compiler.Run("cc", "-m32", "-nostdlib", "-static", "-ffreestanding", "-o", program, SourceOf("tracked32.c")).Code == 0 ? program : null;
        }
    }

    public void Dispose() => _folder.Dispose();

    private static string SourceOf(string source) => System.IO.Path.Combine(AppContext.BaseDirectory, "Processes", source);

    private string Compile(string source, params string[] options)
    {
        var program = _folder[$"program{string.Concat(options)}"];
        return File.Exists(program) ? program : Compiler.Compile(SourceOf(source), program, options);
    }
}
