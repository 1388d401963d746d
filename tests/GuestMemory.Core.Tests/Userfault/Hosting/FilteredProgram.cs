namespace GuestMemory.Core.Tests;

/// <summary>The program filtered.c, compiled when it is needed first.</summary>
public sealed class FilteredProgram : IDisposable
{
    private readonly TestFolder _folder = new();

    public string Path
    {
        get
        {
            var program = _folder["filtered"];
            return File.Exists(program) ? program : Compiler.Compile(System.IO.Path.Combine(AppContext.BaseDirectory, "Userfault", "Hosting", "filtered.c"), program);
        }
    }

    public void Dispose() => _folder.Dispose();
}
