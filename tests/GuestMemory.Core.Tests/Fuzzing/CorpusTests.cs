using GuestMemory.Fuzz;

namespace GuestMemory.Core.Tests;

/// <summary>Every input of the corpora, once through its target: what ./build.sh Fuzz begins with is read or refused as documented.</summary>
public sealed class CorpusTests
{
    public static TheoryData<string> Targets => [.. FuzzTargets.All.Select(target => target.Name)];

    [Theory]
    [MemberData(nameof(Targets))]
    public void TheCorpusFindsNothing(string name)
    {
        var target = FuzzTargets.All.First(target => target.Name == name);
        Assert.SkipWhen(target.Missing?.Invoke() is not null, target.Missing?.Invoke() ?? "");
        var files = Directory.GetFiles(Path.Combine(AppContext.BaseDirectory, "corpus", name));
        Assert.NotEmpty(files);
        foreach (var file in files)
        {
            var finding = Record.Exception(() => FuzzRunner.Run(target, File.ReadAllBytes(file)));
            Assert.True(finding is null, $"{Path.GetFileName(file)}: {finding}");
        }
    }

    [Fact]
    public void EveryCorpusHasATarget() =>
        Assert.Equal(FuzzTargets.All.Select(target => target.Name).Order(StringComparer.Ordinal), Directory.GetDirectories(Path.Combine(AppContext.BaseDirectory, "corpus")).Select(Path.GetFileName).Order(StringComparer.Ordinal));
}
