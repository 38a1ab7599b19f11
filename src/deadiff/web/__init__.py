"""The graphical app: `deadiff web`. Only page.py and server.py import Gradio; the rest is plain Python over the Stylizer."""
