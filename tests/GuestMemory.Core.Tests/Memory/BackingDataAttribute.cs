using System.Reflection;
using Xunit.Sdk;
using Xunit.v3;

namespace GuestMemory.Core.Tests;

/// <summary>
/// A theory over the kinds of memory: anonymous and memfd, which are direct; a file, and memory whose pages a handler serves, which
/// are guarded; what has no address: windows that are mapped for each access, and a file that is read and written; and a Xen
/// domain's: foreign frames, and pages that are granted and mapped on demand. Further arguments follow the kind.
/// </summary>
/// <param name="more">The arguments behind the kind.</param>
[AttributeUsage(AttributeTargets.Method, AllowMultiple = true)]
public sealed class BackingDataAttribute(params object?[] more) : DataAttribute
{
    /// <summary>Whether regions have parts of pages, which no handler serves.</summary>
    public bool OddSizes { get; set; }

    /// <summary>Whether files are left out, mapped or not: what a kernel copies may tear.</summary>
    public bool NoFiles { get; set; }

    public override bool SupportsDiscoveryEnumeration() => true;

    public override ValueTask<IReadOnlyCollection<ITheoryDataRow>> GetData(MethodInfo testMethod, DisposalTracker disposalTracker) =>
        new([.. TestMemory.Kinds.Where(backing => (!OddSizes || backing != "served") && (!NoFiles || backing is not ("file" or "pread"))).Select(backing => new TheoryDataRow([backing, .. more]))]);
}
