using System.Management.Automation;
using GuestMemory.Core;
using GuestMemory.Core.Userfault;

namespace GuestMemory.PowerShell.Commands;

/// <summary>Images of handlers by the names that were typed.</summary>
internal static class UffdImageLookup
{
    /// <summary>The images of handlers, or of all of this user that run.</summary>
    public static UffdImage[] All(UffdHandler[] handlers) =>
        [.. (handlers.Length > 0 ? handlers : Session.Handlers).Where(static handler => handler.State is not (UffdHandlerState.Stopped or UffdHandlerState.Failed)).SelectMany(static handler => handler.Images)];

    /// <exception cref="GuestMemoryException">UffdImageNotFound: a name without wildcards is that of no image.</exception>
    public static UffdImage[] ByName(UffdImage[] images, string name)
    {
        var pattern = WildcardPattern.Get(name, WildcardOptions.IgnoreCase);
        UffdImage[] found = [.. images.Where(image => pattern.IsMatch(image.Name))];
        return found.Length > 0 || WildcardPattern.ContainsWildcardCharacters(name) ? found
            : throw new GuestMemoryException(GuestMemoryError.UffdImageNotFound, $"No handler of this user serves an image '{name}'. 'Get-UffdImage' lists them.");
    }
}
