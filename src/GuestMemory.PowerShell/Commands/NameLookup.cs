using System.Management.Automation;
using GuestMemory.Core;

namespace GuestMemory.PowerShell.Commands;

/// <summary>Objects of this shell by the name that was typed.</summary>
internal static class NameLookup
{
    /// <summary>Those whose names match.</summary>
    /// <param name="all">All there are.</param>
    /// <param name="nameOf">The name of one.</param>
    /// <param name="name">What was typed; wildcards are allowed.</param>
    /// <param name="error">The error where a name without wildcards names none.</param>
    /// <param name="what">What it would be, as in "There is no WHAT 'web' in this shell".</param>
    /// <param name="lists">The cmdlet that lists them.</param>
    /// <exception cref="GuestMemoryException">The error: a name without wildcards names none.</exception>
    public static T[] Find<T>(IEnumerable<T> all, Func<T, string> nameOf, string name, GuestMemoryError error, string what, string lists)
    {
        var pattern = WildcardPattern.Get(name, WildcardOptions.IgnoreCase);
        T[] found = [.. all.Where(each => pattern.IsMatch(nameOf(each)))];
        return found.Length > 0 || WildcardPattern.ContainsWildcardCharacters(name)
            ? found
            : throw new GuestMemoryException(error, $"There is no {what} '{name}' in this shell. '{lists}' lists them.");
    }
}
