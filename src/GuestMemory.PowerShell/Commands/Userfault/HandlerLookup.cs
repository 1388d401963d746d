using System.Management.Automation;
using GuestMemory.Core;

namespace GuestMemory.PowerShell.Commands;

/// <summary>Handlers by the path that was typed.</summary>
internal static class HandlerLookup
{
    /// <exception cref="GuestMemoryException">HandlerNotFound: a path without wildcards names none.</exception>
    public static UffdHandler[] BySocket(string path, Func<string, string> resolve)
    {
        UffdHandler[] found;
        if (WildcardPattern.ContainsWildcardCharacters(path))
        {
            var pattern = WildcardPattern.Get(path, WildcardOptions.None);
            return [.. Session.Handlers.Where(handler => pattern.IsMatch(handler.SocketPath))];
        }

        var resolved = resolve(path);
        found = [.. Session.Handlers.Where(handler => handler.SocketPath == resolved)];
        return found.Length > 0 ? found : throw new GuestMemoryException(GuestMemoryError.HandlerNotFound, $"No handler of this shell listens at {resolved}. 'Get-UffdHandler' lists them.");
    }
}
