"""Hugging Face's models: conversion of settings, and of names and layouts of tensors."""
